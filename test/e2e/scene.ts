/**
 * A node with everything on it, in one call: lab, pods, agent, proxy, and a capture of what passes the proxy by. A test
 * begins with its first `expect`.
 */

import { afterAll, beforeAll, expect } from 'vitest';
import { Capture, POD_TCP } from '../lab/capture.js';
import { createNetwork, type Network } from '../lab/cni.js';
import { Containerd } from '../lab/containerd.js';
import { Lab, REMOTE } from '../lab/lab.js';
import { type PlainPod, runPlainPod } from '../lab/plain.js';
import { type LabPod, type LabRuntime, reply, type Topology } from '../lab/pod.js';
import {
  type AgentSettings,
  enrolled,
  INBOUND,
  OUTBOUND,
  type ProxyFlow,
  staticPod,
  TestAgent,
  TestProxy,
} from './agent.js';

/** An instance that has a listener for each direction and family, and what the reference proxy is told for it. */
export const BOTH_WAYS = { name: 'default', outbound: [...OUTBOUND], inbound: [...INBOUND] };
export const INBOUND_WORDS = ['--inbound', INBOUND[0], '--inbound6', INBOUND[1]] as const;

export interface ScenePod {
  readonly name: string;
  /** `plain`: a namespace with processes of the host in it, by far the fastest. Default. */
  readonly runtime?: 'plain' | Exclude<LabRuntime, 'rund'>;
  /** Default ptp. */
  readonly topology?: Topology;
  /** Not enrolled, with what else the static source is to say of it, as fields of a static pod. */
  readonly described?: object;
}

export interface SceneOptions {
  readonly pods?: readonly ScenePod[];
  /** Sources are beside the static one, by which pods are described. */
  readonly agent?: Partial<AgentSettings>;
  /** This containerd is a source as well, and its pods are described by nobody else. */
  readonly cri?: { readonly topology: Topology; readonly settings?: object };
  /** What pods are sent is intercepted as well. */
  readonly inbound?: true;
  /** Words for the reference proxy. */
  readonly proxy?: readonly string[];
  /** On the new node, before anything else. */
  readonly prepare?: (scene: Scene) => Promise<unknown>;
  /** In the place of a plain start, once the pods are described. */
  readonly startAgent?: (scene: Scene) => Promise<void>;
}

/** Made before the first test of the file or `describe`, taken away after the last. */
export function useScene(options: SceneOptions = {}): Scene {
  const scene = new Scene(options);
  beforeAll(() => scene.open());
  afterAll(() => scene.close());
  return scene;
}

export class Scene {
  readonly #options: SceneOptions;
  readonly #pods = new Map<string, LabPod>();
  readonly #described = new Map<string, object>();
  readonly #networks = new Map<Topology, Network>();
  readonly #containerds = new Map<Topology, Containerd>();
  #lab: Lab | undefined;
  #agent: TestAgent | undefined;
  #proxy: TestProxy | undefined;
  #uplink: Capture | undefined;

  constructor(options: SceneOptions) {
    this.#options = options;
  }

  get lab(): Lab {
    return there(this.#lab, 'lab');
  }

  get agent(): TestAgent {
    return there(this.#agent, 'agent');
  }

  get proxy(): TestProxy {
    return there(this.#proxy, 'proxy');
  }

  get uplink(): Capture {
    return there(this.#uplink, 'capture');
  }

  async open(): Promise<void> {
    const { pods = [], cri, inbound, proxy = [], prepare, startAgent, agent: settings } = this.#options;
    const lab = await Lab.create();
    this.#lab = lab;
    await lab.serve();
    await prepare?.(this);
    const endpoint = cri && `unix://${(await this.containerd(cri.topology)).socket}`;
    const agent = new TestAgent(lab, {
      ...(inbound && { instances: [BOTH_WAYS] }),
      ...settings,
      sources: {
        static: { file: 'pods.yaml' },
        ...(cri && { cri: { endpoint, ...cri.settings } }),
        ...settings?.sources,
      },
    });
    this.#agent = agent;
    this.#proxy = new TestProxy(lab, agent);
    for (const pod of pods) {
      await this.add(pod);
    }
    this.#write();
    await (startAgent?.(this) ?? agent.start());
    await this.proxy.start(...(inbound ? INBOUND_WORDS : []), ...proxy);
    const takesDatagrams = proxy.filter((word) => word === '--listen-udp').length;
    await agent.adopted((inbound ? 4 : 2) + takesDatagrams);
    for (const { name, described } of pods) {
      if (described === undefined) {
        await agent.reaches(name, 'INTERCEPTED');
      }
    }
    this.#uplink = await Capture.start(lab, lab.node, 'uplink', POD_TCP);
  }

  async close(): Promise<void> {
    await this.#lab?.close();
  }

  /** One of that topology, started when it is first asked for. */
  async containerd(topology: Topology): Promise<Containerd> {
    const found = this.#containerds.get(topology) ?? (await Containerd.start(this.lab, topology));
    this.#containerds.set(topology, found);
    this.#networks.set(topology, found.network);
    return found;
  }

  network(topology: Topology): Network {
    const found = this.#networks.get(topology) ?? createNetwork(this.lab, topology);
    this.#networks.set(topology, found);
    return found;
  }

  pod(name: string): LabPod {
    return there(this.#pods.get(name), `pod ${name}`);
  }

  /** Runs it, and has it described by its source; whether it is intercepted is for the caller to wait for. */
  async add({ name, runtime = 'plain', topology = 'ptp', described }: ScenePod): Promise<LabPod> {
    const byCri = this.#options.cri?.topology === topology && runtime !== 'plain';
    const labels = byCri && described === undefined ? { labels: enrolled(name) } : {};
    const pod =
      runtime === 'plain'
        ? await runPlainPod(this.lab, this.network(topology), name)
        : await (await this.containerd(topology)).runPod({ name, runtime, ...labels });
    this.#pods.set(name, pod);
    if (!byCri) {
      this.describe(pod, described);
    }
    return pod;
  }

  /** As `add`, a plain one. */
  async addPlain(name: string): Promise<PlainPod> {
    return (await this.add({ name })) as PlainPod;
  }

  /** In the static source from now on, enrolled unless `more` says otherwise. */
  describe(pod: LabPod, more: object = {}): void {
    this.#described.set(pod.uid, staticPod(pod, more));
    this.#write();
  }

  /** Out of the static source. */
  drop(pod: LabPod): void {
    this.#described.delete(pod.uid);
    this.#write();
  }

  /** What the static source says of all of them, to which a test may add. */
  get described(): readonly object[] {
    return [...this.#described.values()];
  }

  /** A new connection of the pod arrives at the proxy, under the pod's address and with the one that it dialled. */
  async expectAtProxy(pod: LabPod, family: 4 | 6 = 4): Promise<ProxyFlow> {
    const bracket = (ip: string) => (family === 6 ? `[${ip}]` : ip);
    const { localPort } = reply(await pod.app(['dial', REMOTE[family], '80'], 10_000));
    const flow = await this.proxy.flowFrom(`${bracket(pod.ips[family])}:${localPort}`);
    expect(flow).toMatchObject({ originalDst: `${bracket(REMOTE[family])}:80` });
    return flow;
  }

  /** Since the beginning no TCP packet has left the node under the address of a pod. */
  async expectNothingDirect(): Promise<void> {
    expect(await this.uplink.flows()).toEqual([]);
  }

  #write(): void {
    this.#agent?.writePods([...this.#described.values()]);
  }
}

function there<T>(part: T | undefined, what: string): T {
  if (part === undefined) {
    throw new Error(`there is no ${what} before the scene is open`);
  }
  return part;
}
