/**
 * A node and the world outside it, as two network namespaces joined by a veth:
 *
 *   pods 10.66.x.0/24 ── node 10.199.0.1 ══ 10.199.0.2 remote, which also is 10.200.1.1
 *        fd00:66:x::/64       fd00:199::1    fd00:199::2                      fd00:200::1
 */

import { mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { Cleanup, Daemon, inNetns, run, runIn, script } from './exec.js';
import { buildApp } from './image.js';

/** What pods dial: addresses that only the remote has. */
export const REMOTE = { 4: '10.200.1.1', 6: 'fd00:200::1' } as const;
export const SERVICE_PORT = 80;

let counter = 0;

export interface LabOptions {
  /** `net.bridge.bridge-nf-call-iptables` and its IPv6 sister; Kubernetes nodes have 1. Default 1. */
  readonly bridgeNetfilter?: 0 | 1;
}

export class Lab {
  /** Short and unique on this machine; part of every name that the lab makes. */
  readonly id: string;
  readonly directory: string;
  readonly node: string;
  readonly remote: string;
  readonly cleanup = new Cleanup();

  private constructor() {
    counter += 1;
    this.id = `${process.pid.toString(36)}${counter.toString(36)}`;
    this.directory = mkdtempSync(join(tmpdir(), 'nodesentry-lab-'));
    this.node = `nsl-${this.id}-node`;
    this.remote = `nsl-${this.id}-far`;
  }

  static async create(options: LabOptions = {}): Promise<Lab> {
    const lab = new Lab();
    lab.cleanup.add('the lab folder', () => rmSync(lab.directory, { recursive: true, force: true }));
    try {
      await lab.#build(options);
      return lab;
    } catch (error) {
      await lab.close().catch(() => undefined);
      throw error;
    }
  }

  async #build(options: LabOptions): Promise<void> {
    for (const netns of [this.node, this.remote]) {
      await run('ip', ['netns', 'add', netns]);
      this.cleanup.add(`netns ${netns}`, () => run('ip', ['netns', 'del', netns]));
    }
    await script(
      this.remote,
      `ip link set lo up
       ip addr add ${REMOTE[4]}/32 dev lo
       ip addr add ${REMOTE[6]}/128 dev lo nodad`,
    );
    await this.#joinNode(options);
  }

  async #joinNode({ bridgeNetfilter = 1 }: LabOptions): Promise<void> {
    await script(
      this.node,
      `sysctl -qw net.ipv4.ip_forward=1 net.ipv6.conf.all.forwarding=1
       sysctl -qw net.ipv6.conf.default.accept_dad=0 net.ipv6.conf.all.accept_dad=0
       sysctl -qw net.bridge.bridge-nf-call-iptables=${bridgeNetfilter} net.bridge.bridge-nf-call-ip6tables=${bridgeNetfilter}
       ip link set lo up
       ip link add uplink type veth peer name eth0 netns ${this.remote}
       ip addr add 10.199.0.1/24 dev uplink
       ip addr add fd00:199::1/64 dev uplink nodad
       ip link set uplink up
       ip route add ${REMOTE[4]}/32 via 10.199.0.2`,
    );
    await script(
      this.remote,
      `ip addr add 10.199.0.2/24 dev eth0
       ip addr add fd00:199::2/64 dev eth0 nodad
       ip link set eth0 up
       ip route add 10.66.0.0/16 via 10.199.0.1
       ip route add fd00:66::/32 via fd00:199::1`,
    );
    await runIn(this.node, 'ip', ['route', 'add', `${REMOTE[6]}/128`, 'via', 'fd00:199::2']);
  }

  /** The node's network as after a boot: what was in the kernel for it is gone. Nothing may run in it any more. */
  async renewNode(options: LabOptions = {}): Promise<void> {
    // Connections that nobody has ended keep a network namespace for minutes.
    await runIn(this.remote, 'ip', ['link', 'del', 'eth0']);
    await run('ip', ['netns', 'del', this.node]);
    await run('ip', ['netns', 'add', this.node]);
    await this.#joinNode(options);
  }

  /** A process in one of the lab's namespaces, stopped with the lab. */
  daemon(netns: string, name: string, command: string, args: readonly string[]): Daemon {
    const daemon = new Daemon(name, join(this.directory, `${name}.log`), ...inNetns(netns, command, args));
    this.cleanup.add(name, () => daemon.stop());
    return daemon;
  }

  /** The test application as a server on the remote, at its service port and whatever else is named. */
  async serve(...ports: readonly number[]): Promise<Daemon> {
    const all = [SERVICE_PORT, ...ports].map(String);
    const server = this.daemon(this.remote, 'server', await buildApp(), ['serve', ...all]);
    await server.logged(/"serving":true/);
    return server;
  }

  /**
   * A namespace two routers behind the node, with links of the usual size but for the one between them: what is larger than
   * `mtu` the first one refuses.
   */
  async narrowPath(mtu: number): Promise<string> {
    const [middle, beyond] = [`nsl-${this.id}-mid`, `nsl-${this.id}-beyond`];
    for (const netns of [middle, beyond]) {
      await run('ip', ['netns', 'add', netns]);
      this.cleanup.add(`netns ${netns}`, () => run('ip', ['netns', 'del', netns]));
    }
    await script(
      this.remote,
      `sysctl -qw net.ipv4.ip_forward=1 net.ipv6.conf.all.forwarding=1
       ip link add narrow mtu ${mtu} type veth peer name narrow mtu ${mtu} netns ${middle}
       ip addr add 10.198.0.1/24 dev narrow
       ip addr add fd00:198::1/64 dev narrow nodad
       ip link set narrow up
       ip route add 10.197.0.0/24 via 10.198.0.2
       ip route add fd00:197::/64 via fd00:198::2`,
    );
    await script(
      middle,
      `sysctl -qw net.ipv4.ip_forward=1 net.ipv6.conf.all.forwarding=1
       ip addr add 10.198.0.2/24 dev narrow
       ip addr add fd00:198::2/64 dev narrow nodad
       ip link set narrow up
       ip link add wide type veth peer name eth0 netns ${beyond}
       ip addr add 10.197.0.1/24 dev wide
       ip addr add fd00:197::1/64 dev wide nodad
       ip link set wide up
       ip route add default via 10.198.0.1
       ip route add default via fd00:198::1`,
    );
    await script(
      beyond,
      `ip addr add 10.197.0.2/24 dev eth0
       ip addr add fd00:197::2/64 dev eth0 nodad
       ip link set eth0 up
       ip route add default via 10.197.0.1
       ip route add default via fd00:197::1`,
    );
    await script(
      this.node,
      `ip route add 10.197.0.0/24 via 10.199.0.2
       ip route add fd00:197::/64 via fd00:199::2`,
    );
    return beyond;
  }

  async close(): Promise<void> {
    await this.cleanup.run();
  }
}
