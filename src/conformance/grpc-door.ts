/** gRPC on its Unix socket. */

import type { ServiceError } from '@grpc/grpc-js';
import { HEALTH_SERVICE, IDENTITY_SERVICE } from '../api/grpc-protos.js';
import {
  type Answer,
  type Fields,
  fields,
  named,
  type Refusal,
  refusal,
  text,
  type WatchEvent,
  workloadText,
} from './answer.js';
import type { AgentStatus, Asked, Door, WatchFrom } from './doors.js';
import { type GrpcClient, GrpcClients } from './grpc-client.js';

const IDENTITY_PROTO = 'nodesentry/identity/v1/identity.proto';
const REFLECTION_SERVICE = 'grpc.reflection.v1.ServerReflection';

export class GrpcDoor implements Door {
  readonly name = 'gRPC';
  readonly #clients: GrpcClients;
  readonly #identity: GrpcClient;

  constructor(socketPath: string) {
    this.#clients = new GrpcClients(socketPath);
    this.#identity = this.#clients.of(IDENTITY_PROTO, IDENTITY_SERVICE);
  }

  async ask(asked: Asked): Promise<Answer> {
    try {
      return ofResponse(await this.#identity.call('Resolve', messageOf(asked)));
    } catch (error) {
      return refusedBy(error);
    }
  }

  async batch(asked: readonly Asked[]): Promise<readonly Answer[] | Refusal> {
    try {
      const { results } = await this.#identity.call('BatchResolve', { requests: asked.map(messageOf) });
      return (results as readonly Fields[]).map((result) => {
        const { reason, detail } = fields(result.problem);
        return result.result === 'problem' ? refusal(bare('REASON_', reason), detail) : ofResponse(result);
      });
    } catch (error) {
      return refusedBy(error);
    }
  }

  async status(): Promise<AgentStatus> {
    const { version, node, pid, epoch, ready } = await this.#identity.call('GetStatus', {});
    return { version, node, pid, epoch, ready } as unknown as AgentStatus;
  }

  /** Of grpc.health.v1; `service` is empty for the server as a whole. Rejects where there is no such service. */
  async health(service: string): Promise<string> {
    const health = this.#clients.of('grpc/health/v1/health.proto', HEALTH_SERVICE);
    return text((await health.call('Check', { service })).status);
  }

  /** What server reflection says that is served. */
  async services(): Promise<readonly string[]> {
    const { service } = fields((await this.#reflect({ listServices: '' })).listServicesResponse);
    return ((service ?? []) as readonly Fields[]).map(({ name }) => text(name));
  }

  /** How many files reflection has that this name needs; 0 where it does not know it. */
  async filesOf(symbol: string): Promise<number> {
    const { fileDescriptorResponse } = await this.#reflect({ fileContainingSymbol: symbol });
    return ((fields(fileDescriptorResponse).fileDescriptorProto ?? []) as readonly unknown[]).length;
  }

  #reflect(asked: object): Promise<Fields> {
    const client = this.#clients.of('grpc/reflection/v1/reflection.proto', REFLECTION_SERVICE);
    return client.exchange('ServerReflectionInfo', asked);
  }

  watch(
    from: WatchFrom | undefined,
    isEnough: (events: readonly WatchEvent[]) => boolean,
    timeoutMs: number,
  ): Promise<readonly WatchEvent[]> {
    return new Promise((resolve, reject) => {
      const events: WatchEvent[] = [];
      const stream = this.#identity.stream('Watch', from ?? {});
      const timer = setTimeout(done, timeoutMs);
      let isDone = false;
      function done(): void {
        isDone = true;
        clearTimeout(timer);
        resolve(events);
        stream.cancel();
      }
      stream.on('data', (message: Fields) => {
        events.push(ofMessage(message));
        if (!isDone && isEnough(events)) {
          done();
        }
      });
      stream.on('end', () => isDone || done());
      stream.on('error', (error: Error) => {
        clearTimeout(timer);
        if (!isDone) {
          reject(error);
        }
      });
    });
  }

  close(): void {
    this.#clients.close();
  }
}

function messageOf(asked: Asked): object {
  const { proto, src, dst, podUid, address, hostInterface, pid, startTime, netnsCookie, socketCookie } =
    asked;
  const { minAssurance, minEpoch, minRevision, waitMs } = asked;
  const isFlow = [proto, src, dst].some((part) => part !== undefined);
  return {
    ...(isFlow && { flow: { proto, src, dst } }),
    ...(podUid !== undefined && { podUid }),
    ...(address !== undefined && { address }),
    ...(hostInterface !== undefined && { hostInterface }),
    ...(netnsCookie !== undefined && { netnsCookie }),
    ...(socketCookie !== undefined && { socketCookie }),
    ...(pid !== undefined && { process: { pid: Number(pid), startTime } }),
    ...(minAssurance !== undefined && { minAssurance: assuranceOf(minAssurance) }),
    ...(minEpoch !== undefined && { minRevision: { epoch: minEpoch, revision: minRevision } }),
    ...(waitMs !== undefined && { waitMs: Number(waitMs) }),
  };
}

const ASSURANCES = ['IP_ONLY', 'IP_AND_IFACE', 'DATAPATH_RECORDED'];

/** What the enum does not have goes as a number that it does not have. */
function assuranceOf(name: string): string | number {
  return ASSURANCES.includes(name) ? `ASSURANCE_${name}` : 99;
}

const bare = (prefix: string, given: unknown) => text(given).replace(prefix, '').replace('UNSPECIFIED', '');

/** The reason that the trailer names, else the status. */
function refusedBy(error: unknown): Refusal {
  const { metadata, details, code } = error as ServiceError;
  return refusal(text(metadata?.get('nodesentry-reason')[0]) || `status ${code}: ${details}`, details);
}

function ofResponse(response: Fields): Answer {
  const resolution = fields(response.resolution);
  const party = (given: unknown) =>
    given === undefined || given === null
      ? undefined
      : { ...fields(given), reason: bare('REASON_', fields(given).reason) };
  return named({
    ...resolution,
    workload: workloadOf(resolution.workload),
    direction: bare('DIRECTION_', resolution.direction),
    assurance: bare('ASSURANCE_', resolution.assurance),
    source: party(resolution.source),
    destination: party(resolution.destination),
  });
}

function workloadOf(given: unknown): Fields {
  const workload = fields(given);
  return { ...workload, state: bare('WORKLOAD_STATE_', workload.state) };
}

function ofMessage(message: Fields): WatchEvent {
  const event = text(message.event);
  const content = fields(message[event]);
  const kind = event.replace(/([A-Z])/g, '_$1').toUpperCase() as WatchEvent['kind'];
  return {
    kind,
    epoch: text(message.epoch),
    revision: Number(message.revision),
    uid: text(content.uid),
    workload: kind === 'UPSERT' ? workloadText(workloadOf(content)) : '',
  };
}
