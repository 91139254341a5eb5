/**
 * Pods without a runtime: a network namespace and a veth each, announced by our real CNI plugin. For tests that need
 * many of them, quickly.
 */

import { spawn } from 'node:child_process';
import { randomUUID } from 'node:crypto';
import { join } from 'node:path';
import { run } from './exec.js';
import type { Lab } from './lab.js';

export const PLUGIN = join(import.meta.dirname, '../../build/cni/nodesentry-cni');
const GATEWAY = '169.254.1.1';

export interface NamespacePod {
  readonly uid: string;
  readonly name: string;
  readonly netns: string;
  /** The host's end. */
  readonly veth: string;
  readonly ip: string;
  readonly containerId: string;
  /** From the start of the plugin's process to its end. */
  readonly addMs: number;
}

export interface NamespacePodsOptions {
  readonly socket: string;
  readonly annotations?: Readonly<Record<string, string>>;
}

/** Addresses are given out again as soon as they are free, the last one first: the hardest case for identity. */
export class NamespacePods {
  readonly #lab: Lab;
  readonly #options: NamespacePodsOptions;
  readonly #live = new Map<string, NamespacePod>();
  readonly #free: string[] = [];
  #made = 0;
  #addresses = 0;

  constructor(lab: Lab, options: NamespacePodsOptions) {
    this.#lab = lab;
    this.#options = options;
    lab.cleanup.add('namespace pods', async () => {
      for (const { netns } of this.#live.values()) {
        await run('ip', ['netns', 'del', netns]);
      }
    });
  }

  /** Those that have been announced and not taken back. */
  live(): NamespacePod[] {
    return [...this.#live.values()];
  }

  async add(): Promise<NamespacePod> {
    this.#made += 1;
    const name = `pod-${this.#made}`;
    const netns = `nsl-${this.#lab.id}-${name}`;
    const veth = `v${this.#lab.id.slice(-6)}x${this.#made}`;
    const ip = this.#free.pop() ?? this.#nextAddress();
    await run('ip', ['netns', 'add', netns]);
    await ipBatch(this.#lab.node, nodeEnd({ veth, netns, ip }));
    await ipBatch(netns, podEnd(ip));
    const pod = { uid: randomUUID(), name, netns, veth, ip, containerId: randomUUID().replaceAll('-', '') };
    const addMs = await this.#plugin('ADD', pod);
    const added = { ...pod, addMs };
    this.#live.set(pod.uid, added);
    return added;
  }

  async remove(pod: NamespacePod): Promise<void> {
    this.#live.delete(pod.uid);
    await this.#plugin('DEL', pod);
    await ipBatch(this.#lab.node, [`link del ${pod.veth}`]);
    await run('ip', ['netns', 'del', pod.netns]);
    this.#free.push(pod.ip);
  }

  #nextAddress(): string {
    this.#addresses += 1;
    return `10.66.${128 + (this.#addresses >> 8)}.${this.#addresses & 0xff}`;
  }

  /** Our plugin alone, as behind a plugin that made what stands in `prevResult`. */
  #plugin(command: 'ADD' | 'DEL', pod: Omit<NamespacePod, 'addMs'>): Promise<number> {
    const path = `/run/netns/${pod.netns}`;
    const { socket, annotations = {} } = this.#options;
    const input = JSON.stringify({
      cniVersion: '1.0.0',
      name: 'churn',
      type: 'nodesentry-cni',
      socket,
      timeoutMs: 30_000,
      runtimeConfig: { 'io.kubernetes.cri.pod-annotations': annotations },
      prevResult: {
        cniVersion: '1.0.0',
        interfaces: [{ name: 'eth0', sandbox: path }],
        ips: [{ interface: 0, address: `${pod.ip}/32`, gateway: GATEWAY }],
      },
    });
    const env = {
      CNI_COMMAND: command,
      CNI_CONTAINERID: pod.containerId,
      CNI_NETNS: path,
      CNI_IFNAME: 'eth0',
      CNI_PATH: '/',
      CNI_ARGS: `K8S_POD_NAMESPACE=churn;K8S_POD_NAME=${pod.name};K8S_POD_UID=${pod.uid}`,
    };
    return new Promise((resolve, reject) => {
      const startedMs = performance.now();
      const child = spawn(PLUGIN, [], { env, stdio: ['pipe', 'pipe', 'inherit'] });
      let said = '';
      child.stdout.on('data', (data) => {
        said += String(data);
      });
      child.once('error', reject);
      child.once('close', (code) =>
        code === 0
          ? resolve(performance.now() - startedMs)
          : reject(new Error(`${command} of ${pod.name} exited with ${code}: ${said}`)),
      );
      child.stdin.end(input);
    });
  }
}

/** Words of ip(8), for a batch in the node: a routed veth into the pod's namespace. */
export function nodeEnd(pod: Pick<NamespacePod, 'veth' | 'netns' | 'ip'>): string[] {
  return [
    `link add ${pod.veth} type veth peer name eth0 netns ${pod.netns}`,
    `link set ${pod.veth} up`,
    `addr add ${GATEWAY}/32 dev ${pod.veth}`,
    `route add ${pod.ip}/32 dev ${pod.veth}`,
  ];
}

/** The same in the pod. */
export function podEnd(ip: string): string[] {
  return [
    'link set lo up',
    'link set eth0 up',
    `addr add ${ip}/32 dev eth0`,
    `route add ${GATEWAY}/32 dev eth0`,
    `route add default via ${GATEWAY}`,
  ];
}

/** One process for all of them; in the root namespace where none is named. */
export async function ipBatch(netns: string | undefined, lines: readonly string[]): Promise<void> {
  const where = netns === undefined ? [] : ['-n', netns];
  await run('ip', [...where, '-batch', '-'], { input: `${lines.join('\n')}\n` });
}
