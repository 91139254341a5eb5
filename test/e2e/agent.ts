/** A real agent and the reference proxy, started as a user would start them, inside a lab's node. */

import { mkdirSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { stringify } from 'yaml';
import { ApiClient } from '../../src/api/client.js';
import type { WorkloadMessage } from '../../src/api/messages.js';
import { BpfMap } from '../../src/native/bpf.js';
import { type Daemon, inNetns, type Output, tryRun, waitFor } from '../lab/exec.js';
import type { Lab } from '../lab/lab.js';
import type { LabPod } from '../lab/pod.js';

export const CLI = join(import.meta.dirname, '../../bin/nodesentry');

const DEFAULT_OBJECTS = join(import.meta.dirname, '../../build/bpf');

export const OUTBOUND = ['127.0.0.1:15001', '[::1]:15001'] as const;
export const INBOUND = ['127.0.0.1:15006', '[::1]:15006'] as const;

/** The label that the CRI source takes a service account from, where no kubelet has set labels of its own. */
export function enrolled(app: string): Record<string, string> {
  return { app, 'nodesentry.io/intercept': 'enabled', 'nodesentry.io/service-account': app };
}

/** What the static source says of a pod that no CRI knows. */
export function staticPod(pod: LabPod, more: object = {}): object {
  return {
    namespace: pod.namespace,
    name: pod.name,
    uid: pod.uid,
    serviceAccount: pod.name,
    runtime: pod.runtime,
    labels: { app: pod.name, 'nodesentry.io/intercept': 'enabled' },
    ips: [pod.ips[4], pod.ips[6]],
    netns: pod.netns,
    ...more,
  };
}

export interface AgentSettings {
  readonly sources: object;
  readonly interception?: object;
  readonly instances?: readonly object[];
  readonly lifecycle?: object;
}

export class TestAgent {
  readonly #lab: Lab;
  readonly #settings: AgentSettings;
  readonly runDir: string;
  readonly bpffs: string;
  readonly configPath: string;
  readonly podsPath: string;
  readonly client: ApiClient;
  /** Folder of the BPF objects that the next start takes, and every other command: another version of the agent. */
  objects = DEFAULT_OBJECTS;
  /** The same of the command line: bin/nodesentry of another release. */
  binary = CLI;
  #daemon: Daemon | undefined;
  #starts = 0;

  constructor(lab: Lab, settings: AgentSettings) {
    this.#lab = lab;
    this.#settings = settings;
    this.runDir = join(lab.directory, 'run');
    this.bpffs = join(lab.directory, 'bpf');
    this.configPath = join(lab.directory, 'config.yaml');
    this.podsPath = join(lab.directory, 'pods.yaml');
    mkdirSync(this.runDir, { recursive: true });
    this.writeConfig({});
    this.client = new ApiClient({ runDir: this.runDir });
    lab.cleanup.add('nodesentry cleanup', async () => {
      const { code, stderr } = await this.cli('cleanup');
      if (code !== 0) {
        throw new Error(stderr);
      }
    });
    lab.cleanup.add('API client', () => this.client.close());
  }

  writeConfig(changes: object): void {
    const {
      sources,
      interception = {},
      instances = [{ name: 'default', outbound: [...OUTBOUND] }],
      lifecycle,
    } = this.#settings;
    writeFileSync(
      this.configPath,
      stringify({
        node: 'node-a',
        interception,
        sources,
        instances,
        ...(lifecycle && { lifecycle }),
        ...changes,
      }),
    );
  }

  writePods(pods: readonly object[]): void {
    writeFileSync(this.podsPath, stringify({ pods }));
  }

  get pid(): number {
    return this.#daemon?.pid ?? 0;
  }

  log(): string {
    return this.#daemon?.log() ?? '';
  }

  /** Starts the agent and waits until it is ready, or only until it runs. */
  async start({ ready = true } = {}): Promise<void> {
    this.#starts += 1;
    const daemon = this.#lab.daemon(this.#lab.node, `agent-${this.#starts}`, this.binary, [
      ...this.#globals(),
      'agent',
    ]);
    this.#daemon = daemon;
    await daemon.logged(/"msg":"agent running"/, 30_000);
    if (!ready) {
      return;
    }
    await waitFor('the agent to be ready', () =>
      this.client.status().then(
        ({ ready }) => ready,
        () => false,
      ),
    );
  }

  async stop(signal: NodeJS.Signals = 'SIGTERM'): Promise<void> {
    await this.#daemon?.stop(signal);
  }

  /** The CLI as a user runs it on the node. */
  cli(...words: readonly string[]): Promise<Output> {
    return tryRun(...inNetns(this.#lab.node, this.binary, [...words, ...this.#globals()]));
  }

  #globals(): string[] {
    const { runDir, bpffs, configPath, objects } = this;
    return ['--run-dir', runDir, '--bpffs', bpffs, '--config', configPath, '--bpf-objects', objects];
  }

  async workload(name: string): Promise<WorkloadMessage | undefined> {
    return (await this.client.workloads()).workloads.find(({ podName }) => podName === name);
  }

  /** Waits for a state of the pod, and gives the log where it does not come. */
  async reaches(name: string, state: string): Promise<WorkloadMessage> {
    try {
      return await waitFor(
        `${name} to be ${state}`,
        async () => {
          const workload = await this.workload(name);
          return workload?.interception.state === state ? workload : undefined;
        },
        20_000,
      );
    } catch (error) {
      const now = JSON.stringify(await this.workload(name));
      throw new Error(`${String(error)}; it is ${now}\n${this.log().slice(-4000)}`);
    }
  }

  /** Waits until the outbound listener of every family that has one is adopted. */
  async adopted(count: number): Promise<void> {
    await waitFor(
      `${count} adopted listeners`,
      async () => {
        const { listeners } = await this.client.status();
        return listeners.filter(({ adopted }) => adopted).length === count;
      },
      20_000,
    );
  }

  /** Interfaces that the kernel holds an endpoint of. */
  endpoints(): number[] {
    const map = BpfMap.openPinned(join(this.bpffs, 'v1/maps/endpoints'));
    try {
      return map.entries().map(([key]) => key.readUInt32LE(0));
    } finally {
      map.close();
    }
  }

  /** Packets of a pod by verdict; of all pods together without a name. */
  async packets(name?: string): Promise<Record<string, number>> {
    return name === undefined ? { ...(await this.client.status()).packets } : this.#packetsOf(name, 'egress');
  }

  /** As `packets`, of what the pod was sent. */
  received(name: string): Promise<Record<string, number>> {
    return this.#packetsOf(name, 'ingress');
  }

  async #packetsOf(name: string, direction: 'egress' | 'ingress'): Promise<Record<string, number>> {
    const metrics = await tryRun('curl', [
      '-sS',
      '--unix-socket',
      join(this.runDir, 'http.sock'),
      'http://localhost/metrics',
    ]);
    const found: Record<string, number> = {};
    for (const line of metrics.stdout
      .split('\n')
      .filter((candidate) => candidate.startsWith('nodesentry_packets_total'))) {
      if (line.includes(`pod="${name}"`) && line.includes(`direction="${direction}"`)) {
        found[/verdict="(\w+)"/.exec(line)?.[1] ?? ''] = Number(line.split(' ').at(-1));
      }
    }
    return found;
  }
}

export interface ProxyFlow {
  readonly peer: string;
  readonly originalDst: string;
  readonly resolved?: string;
  readonly [field: string]: unknown;
}

/** What those dial: src/datapath/listener-probe.ts. */
const AGENTS_OWN: ReadonlySet<string> = new Set(['127.0.0.1:1', '[::1]:1']);

export class TestProxy {
  readonly #lab: Lab;
  readonly #runDir: string;
  #daemon: Daemon | undefined;
  #starts = 0;

  constructor(lab: Lab, agent: TestAgent) {
    this.#lab = lab;
    this.#runDir = agent.runDir;
  }

  async start(...more: readonly string[]): Promise<void> {
    this.#starts += 1;
    this.#daemon = this.#lab.daemon(this.#lab.node, `proxy-${this.#starts}`, CLI, [
      '--run-dir',
      this.#runDir,
      'proxy',
      '--outbound',
      OUTBOUND[0],
      '--outbound6',
      OUTBOUND[1],
      ...more,
    ]);
    await this.#daemon.logged(/proxy running/);
  }

  /** One entry per flow, as the proxy logged it; without those by which the agent sees whether it accepts. */
  flows(): ProxyFlow[] {
    return (this.#daemon?.log() ?? '')
      .split('\n')
      .filter((line) => line.includes('"originalDst"'))
      .map((line) => JSON.parse(line) as ProxyFlow)
      .filter(({ originalDst }) => !AGENTS_OWN.has(originalDst));
  }

  /** The flow that came from this address and port. */
  flowFrom(peer: string): Promise<ProxyFlow> {
    return waitFor(`the proxy to see ${peer}`, () => this.flows().find((flow) => flow.peer === peer));
  }

  log(): string {
    return this.#daemon?.log() ?? '';
  }

  async stop(signal: NodeJS.Signals = 'SIGTERM'): Promise<void> {
    await this.#daemon?.stop(signal);
  }
}
