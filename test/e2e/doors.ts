/** Asking a running agent who it is, by each door that its sockets have, with one form of answer. */

import { join } from 'node:path';
import { credentials, loadPackageDefinition, type ServiceError } from '@grpc/grpc-js';
import { loadSync } from '@grpc/proto-loader';
import type { ApiError } from '../../src/api/client.js';
import { IdentityClient } from '../../src/client/identity-client.js';
import type { FlowQuery } from '../../src/identity/resolve.js';
import { formatSocketAddress } from '../../src/net/socket-address.js';

const PROTO = join(import.meta.dirname, '../../proto');

/** Whose flow it is, or the code of the refusal. */
export type Told =
  | { readonly uid: string; readonly state: string; readonly assurance: string; readonly refused?: undefined }
  | {
      readonly refused: string;
      readonly uid?: undefined;
      readonly state?: undefined;
      readonly assurance?: undefined;
    };

interface GrpcResolution {
  readonly workload: { readonly podUid: string; readonly state: string };
  readonly assurance: string;
}

interface GrpcClient {
  Resolve(
    request: object,
    answer: (error: ServiceError | null, response: { resolution: GrpcResolution }) => void,
  ): void;
  close(): void;
}

export class Doors {
  readonly client: IdentityClient;
  readonly #grpc: GrpcClient;

  constructor(runDir: string) {
    this.client = new IdentityClient({ socket: join(runDir, 'http.sock') });
    const definition = loadSync('nodesentry/identity/v1/identity.proto', {
      includeDirs: [PROTO],
      enums: String,
    });
    const loaded = loadPackageDefinition(definition) as unknown as {
      nodesentry: { identity: { v1: { Identity: new (...given: unknown[]) => GrpcClient } } };
    };
    const { Identity } = loaded.nodesentry.identity.v1;
    this.#grpc = new Identity(`unix:${join(runDir, 'identity.sock')}`, credentials.createInsecure());
  }

  /** Until the client's copy answers. */
  async synced(): Promise<void> {
    if (!this.client.synced) {
      await new Promise<void>((resolve) => this.client.once('synced', resolve));
    }
  }

  async http(query: FlowQuery): Promise<Told> {
    try {
      const { workload, assurance } = await this.client.resolve(query);
      return { uid: workload.podUid, state: workload.state, assurance };
    } catch (error) {
      return { refused: (error as ApiError).code };
    }
  }

  grpc({ proto, src, dst, minAssurance }: FlowQuery): Promise<Told> {
    const flow = { proto, src: formatSocketAddress(src), dst: formatSocketAddress(dst) };
    const request = { flow, ...(minAssurance && { minAssurance: `ASSURANCE_${minAssurance}` }) };
    return new Promise((resolve) =>
      this.#grpc.Resolve(request, (error, response) => {
        if (error !== null) {
          resolve({ refused: String(error.metadata?.get('nodesentry-reason')[0] ?? error.code) });
          return;
        }
        const { workload, assurance } = response.resolution;
        resolve({
          uid: workload.podUid,
          state: workload.state.replace('WORKLOAD_STATE_', ''),
          assurance: assurance.replace('ASSURANCE_', ''),
        });
      }),
    );
  }

  async close(): Promise<void> {
    this.#grpc.close();
    await this.client.close();
  }
}
