/** Asks the agent, over its Unix socket. What a proxy written in TypeScript would use. */

import { join } from 'node:path';
import { createInterface } from 'node:readline';
import { Pool } from 'undici';
import type { CapacityReport } from '../capacity/report.js';
import type { FlowQuery, Resolution } from '../identity/resolve.js';
import type { UpgradeStatus } from '../instances/upgrade.js';
import { parseIp } from '../net/ip.js';
import type { FlowProtocol } from '../net/protocol.js';
import { formatSocketAddress, type SocketAddress } from '../net/socket-address.js';
import type {
  BatchMessage,
  DrainMessage,
  DrainsMessage,
  ExplanationMessage,
  FlowMessage,
  FlowsMessage,
  IdentityLine,
  InstancesMessage,
  ListenersMessage,
  ResumedMessage,
  StatusMessage,
  ToldMessage,
  WatchLine,
  WorkloadMessage,
  WorkloadsMessage,
} from './messages.js';
import type { ApiReason, Problem } from './problem.js';

export { ASSURANCES } from '../identity/resolve.js';

/** NO_AGENT: nobody listens. NO_PERMISSION: the socket may not be opened. CONNECTION_FAILED: it broke or timed out. */
export type ApiErrorCode = ApiReason | 'NO_AGENT' | 'NO_PERMISSION' | 'CONNECTION_FAILED';

export class ApiError extends Error {
  override readonly name = 'ApiError';

  constructor(
    readonly code: ApiErrorCode,
    /** HTTP status; undefined where no answer came. */
    readonly status: number | undefined,
    message: string,
    options?: ErrorOptions,
  ) {
    super(message, options);
  }
}

/** Where the socket is: by itself, or as `http.sock` in the agent's run directory. */
export type ApiPlace = { readonly socketPath: string } | { readonly runDir: string };

export type ApiClientOptions = ApiPlace & {
  /** Default 5000. */
  readonly timeoutMs?: number;
  /** Open at once; requests beyond it wait. Default 8. */
  readonly connections?: number;
};

/** As `POST /v1/flows/told` takes it. */
export interface TellingBody {
  /** Default tcp. */
  readonly proto?: FlowProtocol;
  readonly src: string;
  readonly dst: string;
  /** Of an EXPLICIT flow: where the pod has asked to go, such as shop.example:443. */
  readonly destination?: string;
  readonly answers?: readonly { readonly name: string; readonly ip: string; readonly ttlSeconds: number }[];
}

/** As `POST /v1/instances/{name}/listeners` takes it. */
export interface ListenersBody {
  readonly pid: number;
  readonly outbound?: string | readonly string[];
  readonly inbound?: string | readonly string[];
  readonly replace?: boolean;
}

/** As `POST /v1/instances/{name}/upgrade` takes it. */
export interface UpgradeBody {
  readonly outbound?: string | readonly string[];
  readonly inbound?: string | readonly string[];
  readonly owner?: Readonly<Record<string, string | number>>;
  readonly canary?: string;
  readonly checkSeconds?: number;
  readonly observeSeconds?: number;
  readonly deadlineSeconds?: number;
  readonly stop?: boolean;
}

/** The line of a watch that was read last. */
export interface WatchPosition {
  readonly epoch: string;
  readonly revision: number;
}

/** `pod`: name, namespace/name or UID. */
export type DrainTarget = { readonly pod: string } | { readonly app: string } | { readonly all: true };

export type DrainRequest = DrainTarget & { readonly to?: string; readonly deadlineSeconds?: number };

interface Ask {
  readonly method?: 'GET' | 'POST' | 'DELETE';
  readonly body?: string;
  readonly signal?: AbortSignal | undefined;
}

const HEADERS = { 'nodesentry.io': 'true' };

export class ApiClient {
  readonly socketPath: string;
  readonly #pool: Pool;

  constructor(options: ApiClientOptions) {
    const { timeoutMs = 5_000, connections = 8 } = options;
    this.socketPath = 'socketPath' in options ? options.socketPath : join(options.runDir, 'http.sock');
    this.#pool = new Pool('http://localhost', {
      socketPath: this.socketPath,
      connections,
      connect: { timeout: timeoutMs },
      headersTimeout: timeoutMs,
      bodyTimeout: timeoutMs,
    });
  }

  /** Every method throws ApiError. IPv4-mapped addresses, as dual-stack sockets report them, are understood. */
  resolve(query: FlowQuery, signal?: AbortSignal): Promise<Resolution> {
    return this.#json(`/v1/resolve?${new URLSearchParams(wireQuery(query))}`, { signal });
  }

  /** At most 256 queries; the results stand in their order. */
  resolveBatch(queries: readonly FlowQuery[]): Promise<BatchMessage> {
    return this.#json('/v1/resolve:batch', {
      method: 'POST',
      body: JSON.stringify({ queries: queries.map(wireQuery) }),
    });
  }

  workloads(): Promise<WorkloadsMessage> {
    return this.#json('/v1/workloads');
  }

  /** `pod`: a UID, `namespace/name`, or a name that one pod alone has. Of what it dials, or who dials it at that port. */
  explain(
    pod: string,
    flow: ({ readonly dst: SocketAddress } | { readonly src: SocketAddress }) & {
      readonly protocol?: FlowProtocol;
    },
  ): Promise<ExplanationMessage> {
    const query =
      'dst' in flow ? { dst: formatSocketAddress(flow.dst) } : { src: formatSocketAddress(flow.src) };
    const proto = flow.protocol === undefined ? {} : { proto: flow.protocol };
    return this.#json(`/v1/explain?${new URLSearchParams({ pod, ...query, ...proto })}`);
  }

  instances(): Promise<InstancesMessage> {
    return this.#json('/v1/instances');
  }

  /** Begins it; `instances` tells how it goes on. */
  upgradeInstance(name: string, request: UpgradeBody): Promise<UpgradeStatus> {
    const path = `/v1/instances/${encodeURIComponent(name)}/upgrade`;
    return this.#json(path, { method: 'POST', body: JSON.stringify(request) });
  }

  abortUpgrade(name: string): Promise<UpgradeStatus> {
    return this.#json(`/v1/instances/${encodeURIComponent(name)}/upgrade`, { method: 'DELETE' });
  }

  /** What a process has open at these addresses takes the place of what is configured. */
  adoptListeners(name: string, request: ListenersBody): Promise<ListenersMessage> {
    const path = `/v1/instances/${encodeURIComponent(name)}/listeners`;
    return this.#json(path, { method: 'POST', body: JSON.stringify(request) });
  }

  withdrawListeners(name: string): Promise<ListenersMessage> {
    return this.#json(`/v1/instances/${encodeURIComponent(name)}/listeners`, { method: 'DELETE' });
  }

  drains(): Promise<DrainsMessage> {
    return this.#json('/v1/drains');
  }

  /** Resolves when it holds. */
  drain(order: DrainRequest): Promise<DrainMessage> {
    return this.#json('/v1/drain', { method: 'POST', body: JSON.stringify(order) });
  }

  /** The same. */
  resume(scope: DrainTarget): Promise<ResumedMessage> {
    return this.#json('/v1/resume', { method: 'POST', body: JSON.stringify(scope) });
  }

  workload(uid: string): Promise<WorkloadMessage> {
    return this.#json(`/v1/workloads/${encodeURIComponent(uid)}`);
  }

  /** What a proxy has to say of a flow that it has; throws ApiError WORKLOAD_NOT_FOUND where that is not recorded. */
  tell(flow: TellingBody): Promise<ToldMessage> {
    return this.#json('/v1/flows/told', { method: 'POST', body: JSON.stringify(flow) });
  }

  /** The newest first. */
  async flows(limit: number): Promise<readonly FlowMessage[]> {
    return (await this.#json<FlowsMessage>(`/v1/flows?limit=${limit}`)).flows;
  }

  /** Resolves where the agent is live, or ready; ApiError NOT_READY tells what it waits for. */
  async check(what: 'live' | 'ready'): Promise<void> {
    await this.#json(`/${what}z`);
  }

  status(): Promise<StatusMessage> {
    return this.#json('/v1/status');
  }

  capacity(): Promise<CapacityReport> {
    return this.#json('/v1/capacity');
  }

  /** Events from the call on, until `signal` aborts; throws when the agent ends the stream. */
  followFlows(signal: AbortSignal, onOpen?: () => void): AsyncGenerator<WatchLine, void> {
    return this.#lines('/v1/flows/watch', signal, onOpen);
  }

  /**
   * The live pods and what changes of them, until `signal` aborts; throws when the agent ends the stream. From where the
   * reader was, where the agent still knows what has changed since, else all anew.
   */
  watchIdentities(
    from: WatchPosition | undefined,
    signal: AbortSignal,
    onOpen?: () => void,
  ): AsyncGenerator<IdentityLine, void> {
    const query = from === undefined ? '' : `?epoch=${encodeURIComponent(from.epoch)}&since=${from.revision}`;
    return this.#lines(`/v1/watch${query}`, signal, onOpen);
  }

  close(): Promise<void> {
    return this.#pool.destroy();
  }

  async *#lines<T>(path: string, signal: AbortSignal, onOpen?: () => void): AsyncGenerator<T, void> {
    try {
      const { statusCode, body } = await this.#pool.request({
        path,
        method: 'GET',
        headers: HEADERS,
        bodyTimeout: 0,
        signal,
      });
      if (statusCode !== 200) {
        throw refusal(statusCode, await body.text());
      }
      onOpen?.();
      // A stream that breaks reports it by its own error event; readline only sees its end.
      let failure: unknown;
      body.on('error', (error) => {
        failure = error;
      });
      for await (const line of createInterface({ input: body, crlfDelay: Number.POSITIVE_INFINITY })) {
        yield JSON.parse(line) as T;
      }
      throw failure ?? new Error('the agent ended the stream');
    } catch (error) {
      if (!signal.aborted) {
        throw this.#failure(error);
      }
    }
  }

  async #json<T>(path: string, { method = 'GET', body, signal }: Ask = {}): Promise<T> {
    try {
      const response = await this.#pool.request({
        path,
        method,
        headers: body === undefined ? HEADERS : { ...HEADERS, 'content-type': 'application/json' },
        ...(body === undefined ? {} : { body }),
        ...(signal === undefined ? {} : { signal }),
      });
      const text = await response.body.text();
      if (response.statusCode !== 200) {
        throw refusal(response.statusCode, text);
      }
      return JSON.parse(text) as T;
    } catch (error) {
      throw this.#failure(error);
    }
  }

  #failure(cause: unknown): ApiError {
    if (cause instanceof ApiError) {
      return cause;
    }
    const { code, message } = cause as NodeJS.ErrnoException;
    if (code === 'ENOENT' || code === 'ECONNREFUSED' || code === 'ENOTDIR') {
      const hint = 'start it with "nodesentry agent" or name its --run-dir';
      return new ApiError('NO_AGENT', undefined, `no agent answers at ${this.socketPath}: ${hint}`, {
        cause,
      });
    }
    if (code === 'EACCES' || code === 'EPERM') {
      const hint = 'run as root, or as a caller that api.allow names';
      return new ApiError('NO_PERMISSION', undefined, `${this.socketPath} may not be opened: ${hint}`, {
        cause,
      });
    }
    return new ApiError(
      'CONNECTION_FAILED',
      undefined,
      `the agent at ${this.socketPath} did not answer: ${message}`,
      {
        cause,
      },
    );
  }
}

function refusal(status: number, text: string): ApiError {
  try {
    const { reason, detail } = JSON.parse(text) as Problem;
    return new ApiError(reason, status, detail);
  } catch {
    return new ApiError('CONNECTION_FAILED', status, `HTTP status ${status} without a reason`);
  }
}

function wireQuery({ proto, src, dst, minAssurance }: FlowQuery): Record<string, string> {
  const text = ({ ip, port }: FlowQuery['src']): string =>
    formatSocketAddress({ ip: parseIp(ip) ?? ip, port });
  return {
    proto,
    src: text(src),
    dst: text(dst),
    ...(minAssurance === undefined ? {} : { minAssurance }),
  };
}
