/**
 * A stand-in for a container runtime: the CRI's protocol over a real Unix socket, with answers that a test sets.
 * What a real one does is tested against containerd; this one does what a real one cannot be made to do.
 */

import {
  Server,
  ServerCredentials,
  type ServerUnaryCall,
  type ServerWritableStream,
  type sendUnaryData,
  status,
} from '@grpc/grpc-js';
import { loadCriService } from '../../src/pods/sources/cri-client.js';

export interface Sandbox {
  id: string;
  metadata?: { name?: string; uid?: string; namespace?: string; attempt?: number };
  state?: string;
  createdAt?: string;
  network?: { ip?: string; additionalIps?: { ip: string }[] };
  linux?: { namespaces: { options: { network: string } } };
  labels?: Record<string, string>;
  annotations?: Record<string, string>;
  runtimeHandler?: string;
  /** Goes out as the JSON of `info.info`; a text goes out as it is. */
  info?: unknown;
}

type Unary = (
  call: ServerUnaryCall<{ podSandboxId?: string }, object>,
  answer: sendUnaryData<object>,
) => void;

export class CriStandIn {
  version = {
    version: '0.1.0',
    runtimeName: 'containerd',
    runtimeVersion: '1.6.20~ds1',
    runtimeApiVersion: 'v1',
  };
  sandboxes: Sandbox[] = [];
  /** What PodSandboxStatus fails with, by sandbox; `hang` never answers. */
  readonly statusFaults = new Map<string, status | 'hang'>();
  eventsImplemented = true;
  readonly calls: string[] = [];
  readonly #socket: string;
  #server: Server | undefined;
  readonly #streams = new Set<ServerWritableStream<object, object>>();

  constructor(socket: string) {
    this.#socket = socket;
  }

  get endpoint(): string {
    return `unix://${this.#socket}`;
  }

  get streams(): number {
    return this.#streams.size;
  }

  async listen(): Promise<void> {
    const server = new Server();
    const unary = (name: string, answerTo: (id: string) => object | status | 'hang'): Unary => {
      return (call, answer) => {
        const id = call.request.podSandboxId ?? '';
        this.calls.push(id === '' ? name : `${name} ${id}`);
        const result = answerTo(id);
        if (typeof result === 'number') {
          answer({ code: result, details: `sandbox ${id}: ${status[result]}` });
        } else if (result !== 'hang') {
          answer(null, result);
        }
      };
    };
    server.addService(loadCriService().service, {
      Version: unary('Version', () => this.version),
      // A runtime that ignores the filter: the client must not depend on it.
      ListPodSandbox: unary('ListPodSandbox', () => ({ items: this.sandboxes })),
      PodSandboxStatus: unary('PodSandboxStatus', (id) => this.#statusOf(id)),
      GetContainerEvents: (stream: ServerWritableStream<object, object>) => {
        this.calls.push('GetContainerEvents');
        if (!this.eventsImplemented) {
          stream.emit('error', { code: status.UNIMPLEMENTED, details: 'not here' });
          return;
        }
        this.#streams.add(stream);
        stream.on('cancelled', () => this.#streams.delete(stream));
      },
    });
    await new Promise<void>((resolve, reject) => {
      server.bindAsync(this.endpoint, ServerCredentials.createInsecure(), (error) =>
        error === null ? resolve() : reject(error),
      );
    });
    this.#server = server;
  }

  event(): void {
    for (const stream of this.#streams) {
      stream.write({ containerId: 'c1' });
    }
  }

  endEvents(): void {
    for (const stream of this.#streams) {
      stream.end();
    }
    this.#streams.clear();
  }

  /** As if the process had been killed. */
  kill(): void {
    this.#server?.forceShutdown();
    this.#server = undefined;
    this.#streams.clear();
  }

  #statusOf(id: string): object | status | 'hang' {
    const fault = this.statusFaults.get(id);
    if (fault !== undefined) {
      return fault;
    }
    const found = this.sandboxes.find((sandbox) => sandbox.id === id);
    if (found === undefined) {
      return status.NOT_FOUND;
    }
    const { info, ...rest } = found;
    const text = typeof info === 'string' ? info : JSON.stringify(info ?? {});
    return { status: rest, info: { info: text } };
  }
}
