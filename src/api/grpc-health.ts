/** grpc.health.v1: SERVING when the agent is ready, as `/readyz`. */

import {
  type ServerWritableStream,
  type ServiceError,
  type sendUnaryData,
  status,
  type UntypedServiceImplementation,
} from '@grpc/grpc-js';

/** Of a watch, how late it may tell; only while somebody watches. */
const WATCH_LOOK_MS = 100;

interface HealthRequest {
  readonly service: string;
}

interface HealthResponse {
  readonly status: 'SERVING' | 'NOT_SERVING' | 'SERVICE_UNKNOWN';
}

type HealthList = { readonly statuses: Readonly<Record<string, HealthResponse>> };

/** Of the server as a whole (the empty name) and of `services`, which are ready together. */
export function healthHandlers(
  blockers: () => readonly string[],
  services: readonly string[],
): UntypedServiceImplementation {
  const names = ['', ...services];
  const now = (): HealthResponse => ({ status: blockers().length === 0 ? 'SERVING' : 'NOT_SERVING' });
  return {
    check: ({ request }: { request: HealthRequest }, callback: sendUnaryData<HealthResponse>) => {
      if (names.includes(request.service)) {
        callback(null, now());
      } else {
        const unknown: Partial<ServiceError> = {
          code: status.NOT_FOUND,
          details: 'no such service is served here',
        };
        callback(unknown);
      }
    },
    watch: (call: ServerWritableStream<HealthRequest, HealthResponse>) => {
      let told: HealthResponse['status'] | undefined;
      const tell = () => {
        const next = names.includes(call.request.service) ? now() : ({ status: 'SERVICE_UNKNOWN' } as const);
        if (next.status !== told) {
          told = next.status;
          call.write(next);
        }
      };
      tell();
      const timer = setInterval(tell, WATCH_LOOK_MS);
      call.once('cancelled', () => clearInterval(timer));
    },
    list: (_call: unknown, callback: sendUnaryData<HealthList>) => {
      callback(null, { statuses: Object.fromEntries(names.map((name) => [name, now()])) });
    },
  };
}
