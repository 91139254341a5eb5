/** Requests of the plugin, and a server as the agent builds it, with stand-ins for what decides. */

import { mkdtempSync, rmSync } from 'node:fs';
import { connect, type Socket } from 'node:net';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { vi } from 'vitest';
import type { PeerCredentials } from '../../src/api/callers.js';
import { type CniServer, type CniServerOptions, startCniServer } from '../../src/api/cni-server.js';
import { PodStore } from '../../src/pods/pod-store.js';
import { CniSource } from '../../src/pods/sources/cni.js';
import { attachmentOf, type CniAttachment, cniRequest } from '../../src/pods/sources/cni-attachment.js';
import type { Admission, Admissions } from '../../src/reconcile/admission.js';

/** The namespace of this process stands for the pod's. */
export const NETNS = '/proc/self/ns/net';
export const RESULT = {
  cniVersion: '1.0.0',
  interfaces: [{ name: 'veth1' }, { name: 'eth0', sandbox: NETNS }],
  ips: [{ address: '10.66.0.3/24', interface: 1 }, { address: 'FD00:66:0::3/64' }],
};
export const ADD = {
  version: 1,
  command: 'ADD',
  containerId: 'c1',
  netns: NETNS,
  ifname: 'eth0',
  podUid: 'uid-web',
  podNamespace: 'shop',
  podName: 'web-0',
  annotations: { 'nodesentry.io/failure': 'open' },
  prevResult: RESULT,
  timeoutMs: 1_000,
};

/** As the server makes one of an ADD. */
export function attachment(more: object = {}): CniAttachment {
  const request = cniRequest.parse({ ...ADD, ...more });
  if (request.command !== 'ADD') {
    throw new Error('not an ADD');
  }
  return attachmentOf(request);
}

export interface Answer {
  readonly ok: boolean;
  readonly state?: string;
  readonly code?: number;
  readonly msg?: string;
  readonly retry?: boolean;
}

export class CniFixture {
  readonly folder = mkdtempSync(join(tmpdir(), 'nodesentry-cni-server-'));
  readonly directory = join(this.folder, 'cni');
  readonly log = { info: vi.fn(), warn: vi.fn(), error: vi.fn() };
  readonly observed: string[] = [];
  readonly asked: { uid: string; timeoutMs: number }[] = [];
  store = new PodStore();
  source = this.#newSource();
  blockers: string[] = [];
  credentials: () => PeerCredentials = () => ({ pid: 1, uid: 0, gid: 0 });
  admission: () => Promise<Admission> = async () => ({ kind: 'ready', state: 'INTERCEPTED' });
  #server: CniServer | undefined;
  #stop = new AbortController();
  readonly #clients = new Set<Socket>();

  get path(): string {
    return join(this.folder, 'cni.sock');
  }

  #newSource(): CniSource {
    return new CniSource({ directory: this.directory, store: this.store, log: this.log });
  }

  async start(more: Partial<CniServerOptions> = {}): Promise<void> {
    await this.source.start(this.#stop.signal);
    const ask: Admissions['admit'] = (uidOf, timeoutMs) => {
      this.asked.push({ uid: uidOf(), timeoutMs });
      return this.admission();
    };
    this.#server = await startCniServer({
      runDir: this.folder,
      source: this.source,
      admissions: { admit: ask, check: ask },
      blockers: () => this.blockers,
      credentials: () => this.credentials(),
      observeAdd: (result) => this.observed.push(result),
      log: this.log as never,
      ...more,
    });
  }

  /** As an agent that is killed and started anew: nothing but the files is left. */
  async restart(): Promise<void> {
    await this.#halt();
    this.store = new PodStore();
    this.source = this.#newSource();
    await this.start();
  }

  client(): Socket {
    const socket = connect({ path: this.path, allowHalfOpen: true });
    this.#clients.add(socket);
    return socket;
  }

  /** What came until the server ended the connection; rejects where it came without an answer. */
  ask(request: object | string | Buffer, end = true): Promise<Answer> {
    const bytes = typeof request === 'string' || Buffer.isBuffer(request) ? request : JSON.stringify(request);
    return new Promise((resolve, reject) => {
      const socket = this.client();
      let text = '';
      socket.on('data', (chunk) => {
        text += String(chunk);
      });
      socket.on('error', reject);
      socket.once('end', () => {
        socket.end();
        if (text === '') {
          reject(new Error('ended without an answer'));
        } else {
          resolve(JSON.parse(text) as Answer);
        }
      });
      socket.write(bytes);
      if (end) {
        socket.end();
      }
    });
  }

  async #halt(): Promise<void> {
    this.#stop.abort();
    this.#stop = new AbortController();
    await this.#server?.close();
    this.#server = undefined;
  }

  async close(): Promise<void> {
    for (const client of this.#clients) {
      client.destroy();
    }
    await this.#halt();
    rmSync(this.folder, { recursive: true, force: true });
  }
}
