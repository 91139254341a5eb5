/** The pod that the load runs in, of any runtime. */

import { basename } from 'node:path';
import { createNetwork } from '../../lab/cni.js';
import { Containerd } from '../../lab/containerd.js';
import { inNetns, type Output, runIn, tryRun } from '../../lab/exec.js';
import { buildLoad } from '../../lab/image.js';
import type { Lab } from '../../lab/lab.js';
import { MicroVms } from '../../lab/microvm.js';
import { runPlainPod } from '../../lab/plain.js';
import type { LabPod, LabRuntime } from '../../lab/pod.js';

export interface BenchClient {
  readonly pod: LabPod;
  /** Of its namespace, below /run/netns. */
  readonly netnsName: string;
  /** Runs test/lab/app/load.cc in it. */
  load(words: readonly string[]): Promise<Output>;
}

const PORTS = 'net.ipv4.ip_local_port_range=16384 65535';
const TIMEOUT_MS = 120_000;

/** Of runc it is a process of this machine in the pod's namespace: all that the node sees of a runc pod. */
export async function startClient(lab: Lab, runtime: LabRuntime, name = 'client'): Promise<BenchClient> {
  if (runtime === 'runc') {
    const pod = await runPlainPod(lab, createNetwork(lab, 'ptp'), name);
    await runIn(pod.netnsName, 'ip', ['link', 'set', 'lo', 'up']);
    await runIn(pod.netnsName, 'sysctl', ['-qw', PORTS]);
    const load = await buildLoad();
    const run = (words: readonly string[]) =>
      tryRun(...inNetns(pod.netnsName, load, words), { timeoutMs: TIMEOUT_MS });
    return { pod, netnsName: pod.netnsName, load: run };
  }
  const pod =
    runtime === 'rund'
      ? await new MicroVms(lab, 'ptp').runPod({ name })
      : await (await Containerd.start(lab, 'ptp', { current: true })).runPod({ name, runtime });
  const load = (words: readonly string[]) => pod.app(['exec', '/bin/load', ...words], TIMEOUT_MS);
  return { pod, netnsName: basename(pod.netns), load };
}

/** Ports for all of a run, on the node as well. */
export function widenPorts(netns: string): Promise<string> {
  return runIn(netns, 'sysctl', ['-qw', PORTS]);
}
