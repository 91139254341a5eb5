/** The real nodesentry-cni, called as a runtime calls it, and a stand-in of the agent behind its socket. */

import { execFile } from 'node:child_process';
import { createServer, type Server, type Socket } from 'node:net';
import { join } from 'node:path';

export const PLUGIN = join(process.cwd(), 'build/cni/nodesentry-cni');
export const VERSIONS = ['0.3.1', '0.4.0', '1.0.0', '1.1.0'] as const;
export type CniVersion = (typeof VERSIONS)[number];

export interface PluginRun {
  readonly stdout: string;
  readonly stderr: string;
  readonly code: number;
  readonly tookMs: number;
}

export type Environment = Readonly<Record<string, string>>;

/** The namespace of this process stands for the pod's: any will do where no datapath is made. */
export const POD: Environment = {
  CNI_CONTAINERID: 'c1b2',
  CNI_NETNS: '/proc/self/ns/net',
  CNI_IFNAME: 'eth0',
  CNI_PATH: '/opt/cni/bin',
  CNI_ARGS: 'IgnoreUnknown=1;K8S_POD_NAMESPACE=shop;K8S_POD_NAME=web-0;K8S_POD_UID=6f0c-11',
};

/** With nothing in the environment but what is given. */
export function callPlugin(
  env: Environment,
  input: string | Buffer | undefined,
  options: { readonly keepStdinOpen?: boolean } = {},
): Promise<PluginRun> {
  const started = performance.now();
  return new Promise((resolve, reject) => {
    const child = execFile(
      PLUGIN,
      [],
      { env: { ...env }, maxBuffer: 16 << 20, timeout: 60_000 },
      (error, stdout, stderr) => {
        if (error !== null && typeof error.code !== 'number') {
          reject(error);
          return;
        }
        const code = error === null ? 0 : Number(error.code);
        resolve({ stdout, stderr, code, tookMs: performance.now() - started });
      },
    );
    child.stdin?.on('error', () => undefined);
    if (options.keepStdinOpen !== true) {
      child.stdin?.end(input);
    }
  });
}

/** How the stand-in behaves to the n-th connection, from 0. */
export type Behaviour = (request: string, connection: Socket, n: number) => void;

/** Stand-in of the agent's side of cni.sock: keeps what was asked, answers as the test says. */
export class AgentStandIn {
  readonly path: string;
  readonly requests: Record<string, unknown>[] = [];
  readonly texts: string[] = [];
  readonly #server: Server;
  readonly #open = new Set<Socket>();
  #count = 0;

  private constructor(path: string, behaviour: Behaviour) {
    this.path = path;
    this.#server = createServer({ allowHalfOpen: true }, (connection) => {
      const n = this.#count++;
      const chunks: Buffer[] = [];
      this.#open.add(connection);
      connection.on('close', () => this.#open.delete(connection));
      connection.on('error', () => undefined);
      connection.on('data', (chunk: Buffer) => chunks.push(chunk));
      connection.on('end', () => {
        const text = Buffer.concat(chunks).toString();
        this.texts.push(text);
        this.requests.push(JSON.parse(text) as Record<string, unknown>);
        behaviour(text, connection, n);
      });
    });
  }

  static async listen(path: string, behaviour: Behaviour): Promise<AgentStandIn> {
    const agent = new AgentStandIn(path, behaviour);
    await new Promise<void>((resolve, reject) => {
      agent.#server.once('error', reject);
      agent.#server.listen(path, resolve);
    });
    return agent;
  }

  get connections(): number {
    return this.#count;
  }

  async close(): Promise<void> {
    for (const connection of this.#open) {
      connection.destroy();
    }
    await new Promise((resolve) => this.#server.close(resolve));
  }
}

export function answering(answer: object | string): Behaviour {
  const text = typeof answer === 'string' ? answer : JSON.stringify(answer);
  return (_request, connection) => void connection.end(text);
}

export const INTERCEPTED = answering({ ok: true, state: 'INTERCEPTED' });

/** Results that use every field of their version, unknown ones and numbers that a double would bend. */
export const RESULTS: Readonly<Record<CniVersion, string>> = {
  '0.3.1': `{"cniVersion":"0.3.1","interfaces":[{"name":"cali1"},{"name":"eth0","sandbox":"/run/netns/a"}],
    "ips":[{"version":"4","address":"10.1.0.5/32"},{"version":"6","interface":1,"address":"fd00::5/128"}],
    "routes":[{"dst":"0.0.0.0/0"}],"dns":{},"x":1.50}`,
  '0.4.0': `{"cniVersion":"0.4.0","interfaces":[{"name":"veth1","mac":"02:00:00:00:00:01"},
    {"name":"eth0","mac":"02:00:00:00:00:02","sandbox":"/run/netns/a"}],
    "ips":[{"version":"4","interface":1,"address":"10.1.0.5/16","gateway":"10.1.0.1"},
    {"version":"6","interface":1,"address":"fd00::5/64"}],
    "routes":[{"dst":"0.0.0.0/0","gw":"10.1.0.1"}],"dns":{"nameservers":["10.1.0.1"],"domain":"local",
    "search":["a","b"],"options":["ndots:5"]},"x-vendor":{"big":12345678901234567890123,"f":1.0,"e":1E3}}`,
  '1.0.0': `{ "ips": [{"interface":1,"address":"10.1.0.5/16","gateway":"10.1.0.1"}], "cniVersion": "1.0.0",
    "interfaces":[{"name":"br0"},{"name":"eth0","sandbox":"/run/netns/a"}],
    "routes":[{"dst":"0.0.0.0/0"}],"dns":{}, "zeta":0, "alpha":-0.0, "n":9007199254740993 }`,
  '1.1.0': `{"cniVersion":"1.1.0","interfaces":[{"name":"eth0","mac":"02:00:00:00:00:02","mtu":1500,
    "sandbox":"/run/netns/a","socketPath":"/run/vhost.sock","pciID":"0000:00:1f.6"}],
    "ips":[{"address":"10.1.0.5/16","gateway":"10.1.0.1","interface":0}],
    "routes":[{"dst":"0.0.0.0/0","gw":"10.1.0.1","mtu":1400,"advmss":1360,"priority":4294967295,"table":254,
    "scope":253}],"dns":{"nameservers":["10.1.0.1","fd00::1"]},"naïve \\u00e9 \\"q\\"":"süß 🎈 \\ud83c\\udf88 \\\\"}`,
};
