/** What the tests of a node in trouble share. */

import { expect } from 'vitest';
import { Capture, flowOf, POD_TCP } from '../lab/capture.js';
import { createNetwork, type Network } from '../lab/cni.js';
import { type Lab, REMOTE } from '../lab/lab.js';
import { type PlainPod, runPlainPod } from '../lab/plain.js';
import { reply } from '../lab/pod.js';
import { staticPod, TestAgent, TestProxy } from './agent.js';

/** A lab with an agent of static pods, a proxy and a capture of what passes it by. */
export class Trouble {
  readonly lab: Lab;
  readonly agent: TestAgent;
  readonly proxy: TestProxy;
  readonly #network: Network;
  readonly #described = new Map<string, object>();
  #uplink: Capture | undefined;

  constructor(lab: Lab, sources: object = {}) {
    this.lab = lab;
    this.agent = new TestAgent(lab, { sources: { static: { file: 'pods.yaml' }, ...sources } });
    this.proxy = new TestProxy(lab, this.agent);
    this.#network = createNetwork(lab, 'ptp');
    this.#write();
  }

  async start(startAgent: () => Promise<void> = () => this.agent.start()): Promise<PlainPod> {
    await this.lab.serve();
    const web = await this.pod('web');
    await startAgent();
    await this.proxy.start();
    await this.agent.adopted(2);
    await this.agent.reaches('web', 'INTERCEPTED');
    this.#uplink = await Capture.start(this.lab, this.lab.node, 'uplink', POD_TCP);
    return web;
  }

  async pod(name: string): Promise<PlainPod> {
    const pod = await runPlainPod(this.lab, this.#network, name);
    this.#described.set(pod.uid, staticPod(pod));
    this.#write();
    return pod;
  }

  drop(pod: PlainPod): void {
    this.#described.delete(pod.uid);
    this.#write();
  }

  /** A new connection, as the proxy sees it, with the name that the agent gave it. */
  async expectAtProxy(pod: PlainPod): Promise<void> {
    const { localPort } = reply(await pod.app(['dial', REMOTE[4], '80'], 10_000));
    expect(await this.proxy.flowFrom(`${pod.ips[4]}:${localPort}`)).toMatchObject({
      originalDst: `${REMOTE[4]}:80`,
      resolved: true,
      workload: `default/${pod.name}`,
    });
  }

  async expectNothingDirect(): Promise<void> {
    expect((await this.#uplink?.all())?.map(flowOf)).toEqual([]);
  }

  #write(): void {
    this.agent.writePods([...this.#described.values()]);
  }
}
