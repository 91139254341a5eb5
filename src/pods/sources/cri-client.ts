/** The calls of the CRI that we make, with a time limit on each and every answer checked. */

import { fileURLToPath } from 'node:url';
import {
  type CallOptions,
  Client,
  type ClientReadableStream,
  type ClientUnaryCall,
  credentials,
  type GrpcObject,
  loadPackageDefinition,
  type ServiceClientConstructor,
  type ServiceError,
  status,
} from '@grpc/grpc-js';
import { loadSync, type Options } from '@grpc/proto-loader';
import { z } from 'zod';
import { enumName, type SandboxStatus, sandboxStatusSchema } from './cri-sandbox.js';

/** The same way up from dist/ as from src/. */
const PROTO_FILE = fileURLToPath(new URL('../../../proto/cri.proto', import.meta.url));
const PROTO_OPTIONS: Options = { longs: String, enums: String, defaults: true };

/** As the kubelet allows: a list of hundreds of pods with their annotations passes gRPC's 4 MiB. */
const MAX_MESSAGE_BYTES = 16 << 20;

export type CriErrorCode =
  | 'NOT_FOUND'
  | 'UNIMPLEMENTED'
  | 'UNAVAILABLE'
  | 'TIMEOUT'
  | 'CANCELLED'
  | 'FAILED'
  | 'INVALID';

export class CriError extends Error {
  readonly code: CriErrorCode;

  constructor(code: CriErrorCode, message: string, options?: ErrorOptions) {
    super(message, options);
    this.name = 'CriError';
    this.code = code;
  }
}

const versionSchema = z.object({ runtimeName: z.string(), runtimeVersion: z.string() });
export type CriVersion = z.infer<typeof versionSchema>;

const listSchema = z.object({
  items: z.array(z.looseObject({ id: z.string(), state: enumName })),
});
/** What the list tells of a sandbox; the rest of it serves to see that something changed. */
export type ListedSandbox = z.infer<typeof listSchema>['items'][number];

export class CriClient {
  readonly #endpoint: string;
  readonly #deadlineMs: number;
  readonly #client: Client;
  readonly #methods: ReadonlyMap<string, CriMethod>;
  readonly #underWay = new Set<ClientUnaryCall>();

  /** `endpoint` as in `unix:///run/containerd/containerd.sock`. Connects when first used. */
  constructor(endpoint: string, deadlineMs: number) {
    this.#endpoint = endpoint;
    this.#deadlineMs = deadlineMs;
    const service = loadCriService();
    this.#methods = new Map(Object.entries(service.service));
    this.#client = new Client(endpoint, credentials.createInsecure(), {
      'grpc.max_receive_message_length': MAX_MESSAGE_BYTES,
      'grpc.initial_reconnect_backoff_ms': 100,
      'grpc.max_reconnect_backoff_ms': 1000,
      'grpc.use_local_subchannel_pool': 1,
    });
  }

  version(): Promise<CriVersion> {
    return this.#call('Version', {}, versionSchema);
  }

  async listReadySandboxes(): Promise<ListedSandbox[]> {
    const request = { filter: { state: { state: 'SANDBOX_READY' } } };
    const { items } = await this.#call('ListPodSandbox', request, listSchema);
    return items.filter(({ state }) => state === 'SANDBOX_READY');
  }

  sandboxStatus(id: string): Promise<SandboxStatus> {
    return this.#call('PodSandboxStatus', { podSandboxId: id, verbose: true }, sandboxStatusSchema);
  }

  /** Without a time limit. `onEnd` comes once, with the reason. Neither is called after the function returned was. */
  containerEvents(onEvent: () => void, onEnd: (error: CriError) => void): () => void {
    const { path, requestSerialize, responseDeserialize } = this.#method('GetContainerEvents');
    const stream: ClientReadableStream<unknown> = this.#client.makeServerStreamRequest(
      path,
      requestSerialize,
      responseDeserialize,
      {},
    );
    let ended = false;
    const end = (error: CriError): void => {
      if (!ended) {
        ended = true;
        onEnd(error);
      }
    };
    stream.on('data', () => {
      if (!ended) {
        onEvent();
      }
    });
    stream.on('error', (error: ServiceError) => end(this.#explain('GetContainerEvents', error)));
    stream.on('end', () => end(new CriError('UNAVAILABLE', `${this.#endpoint}: the stream of events ended`)));
    return () => {
      ended = true;
      stream.cancel();
    };
  }

  /** Calls under way fail with CANCELLED. */
  close(): void {
    for (const call of this.#underWay) {
      call.cancel();
    }
    this.#client.close();
  }

  #method(name: string): CriMethod {
    const method = this.#methods.get(name);
    if (method === undefined) {
      throw new RangeError(`${PROTO_FILE} has no method ${name}`);
    }
    return method;
  }

  #call<S extends z.ZodType>(name: string, request: object, schema: S): Promise<z.output<S>> {
    const { path, requestSerialize, responseDeserialize } = this.#method(name);
    const options: CallOptions = { deadline: Date.now() + this.#deadlineMs };
    return new Promise((resolve, reject) => {
      const call = this.#client.makeUnaryRequest<object, unknown>(
        path,
        requestSerialize,
        responseDeserialize,
        request,
        options,
        (error, response) => {
          this.#underWay.delete(call);
          if (error !== null) {
            reject(this.#explain(name, error));
            return;
          }
          const parsed = schema.safeParse(response);
          if (parsed.success) {
            resolve(parsed.data);
          } else {
            const what = z.prettifyError(parsed.error);
            reject(
              new CriError('INVALID', `${this.#endpoint}: ${name} answered what it should not: ${what}`),
            );
          }
        },
      );
      this.#underWay.add(call);
    });
  }

  #explain(name: string, error: ServiceError): CriError {
    const message = `${this.#endpoint}: ${name}: ${error.details || error.message}`;
    return new CriError(codeOf(error.code), message, { cause: error });
  }
}

type CriMethod = ServiceClientConstructor['service'][string];

/** The service of proto/cri.proto, for a client, or for a stand-in server in a test. */
export function loadCriService(): ServiceClientConstructor {
  const root = loadPackageDefinition(loadSync(PROTO_FILE, PROTO_OPTIONS)) as unknown as {
    runtime: { v1: GrpcObject & { RuntimeService: ServiceClientConstructor } };
  };
  return root.runtime.v1.RuntimeService;
}

function codeOf(code: status): CriErrorCode {
  switch (code) {
    case status.NOT_FOUND:
      return 'NOT_FOUND';
    case status.UNIMPLEMENTED:
      return 'UNIMPLEMENTED';
    case status.UNAVAILABLE:
      return 'UNAVAILABLE';
    case status.DEADLINE_EXCEEDED:
      return 'TIMEOUT';
    case status.CANCELLED:
      return 'CANCELLED';
    default:
      return 'FAILED';
  }
}
