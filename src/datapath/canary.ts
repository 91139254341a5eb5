/**
 * The proof that interception works, asked of the kernel rather than remembered: a packet is put into the stack as if
 * the pod's host-side interface had just received it from the pod (before Linux 5.18 it is sent from the pod's end), and
 * our program answers which endpoint it came out as, and whether the listener would have got it. Whatever takes packets
 * away before us (another program, a filter of tc) leaves it unanswered.
 *
 * What the pod is sent is proven the same way: a packet that our own interface has just received goes on to the pod's, where
 * our program sends it back, as it would a first packet, and is tried at the inbound listener.
 *
 * No pod's packet looks like it (a SYN to port 0 of the loopback address), and where our program is missing the stack
 * drops it at once: the IPv4 header checksum is wrong, an IPv6 packet to ::1 may not come from outside (RFC 4291,
 * 2.5.3). The group address it is sent to is one that no bridge forwards (IEEE 802.1D, 7.12.6).
 */

import { randomInt } from 'node:crypto';
import { setTimeout as delay } from 'node:timers/promises';
import type { BpfMap, BpfProgram } from '../native/bpf.js';
import { isKernelError } from '../native/errors.js';
import { sendFrames } from '../native/packets.js';
import { AF, FAMILIES, type Family, familyOf } from '../net/family.js';
import { ipToNetworkBytes } from '../net/ip.js';
import type { FlowDirection } from './flows.js';
import type { Layouts } from './layouts.js';

export interface CanaryTarget {
  readonly ifindex: number;
  readonly ips: readonly string[];
  readonly endpoint: number;
  readonly generation: number;
  readonly instance: number;
  /** What the pod is sent is intercepted as well. Default false. */
  readonly inbound?: boolean | undefined;
  /** The pod's end of the interface, where a source tells the pod's namespace. */
  readonly inside?: { readonly netns: string; readonly name: string } | undefined;
}

/**
 * proven: it arrived, came out as this endpoint, and its listener would have got it. program only: our program answered so
 * when it was run by itself, but nothing could be sent by the interface. unproven: it did not, `reason` says what happened.
 * silent: it could not be sent (the interface is gone), so nothing is known.
 */
export type CanaryResult =
  | { readonly kind: 'proven' }
  | { readonly kind: 'program only'; readonly reason: string }
  | { readonly kind: 'unproven'; readonly reason: string }
  | { readonly kind: 'silent'; readonly reason: string };

const PROVEN: CanaryResult = { kind: 'proven' };
/** `struct __sk_buff`, and fields in it: linux/bpf.h. */
const CONTEXT_BYTES = 192;
const CONTEXT_MARK = 8;
const CONTEXT_INGRESS_IFINDEX = 36;
const CONTEXT_IFINDEX = 40;
const LOOPBACK_INDEX = 1;
/** A frame is usually through before the call returns; on a busy CPU it takes its turn. */
const PATIENCE_MS = [0, 1, 5, 20, 100, 200] as const;
const SILENT: ReadonlySet<string> = new Set(['ENETDOWN', 'ENODEV', 'ENXIO', 'ENOBUFS', 'ENOENT']);
/** Before Linux 5.18 a packet has to be sent from the pod's end. */
function programOnly(why: string): CanaryResult {
  const reason = `verified: program only, for ${why}: whether another program takes the pod's packets first is not known`;
  return { kind: 'program only', reason };
}

interface Asked {
  readonly target: CanaryTarget;
  readonly direction: FlowDirection;
  /** Why our program was run on it by itself; undefined: it was sent. */
  readonly unsent: string | undefined;
  readonly family: Family;
  readonly key: Buffer;
  readonly nonce: number;
}

export interface CanaryMaps {
  readonly canaries: BpfMap;
  readonly deliveries: BpfMap;
  readonly ingress_canaries: BpfMap;
  readonly ingress_deliveries: BpfMap;
}

export interface CanaryPrograms {
  /** Passes live frames on. */
  readonly canary: Pick<BpfProgram, 'inject'>;
  /** Those that are attached to the pods' interfaces and our own: run by themselves where nothing can be sent. */
  readonly pod_egress: Pick<BpfProgram, 'testRun'>;
  readonly pod_ingress: Pick<BpfProgram, 'testRun'>;
  readonly inbound_steer: Pick<BpfProgram, 'testRun'>;
}

/** Our own interface, where what the pod is to be sent comes in. */
export interface CanaryEntrance {
  readonly ifindex: number;
  /** The other end of it. */
  readonly outside: { readonly netns: string; readonly name: string };
}

/** Words for each direction. */
const WORDS = {
  EGRESS: { packets: 'packets of the pod', connections: 'connections of the pod' },
  INGRESS: { packets: 'packets for the pod', connections: 'connections to the pod' },
} as const;

export interface CanariesOptions {
  readonly maps: CanaryMaps;
  readonly layouts: Layouts;
  readonly programs: CanaryPrograms;
  /** Undefined while nothing inbound is intercepted. */
  readonly entrance: () => CanaryEntrance | undefined;
  /** By an interface of a namespace. */
  readonly send?: typeof sendFrames;
}

export class Canaries {
  readonly #maps: CanaryMaps;
  readonly #layouts: Layouts;
  readonly #programs: CanaryPrograms;
  readonly #sendFrames: typeof sendFrames;
  readonly #entrance: () => CanaryEntrance | undefined;
  #canInject = true;

  constructor({ maps, layouts, programs, entrance, send = sendFrames }: CanariesOptions) {
    this.#sendFrames = send;
    this.#maps = maps;
    this.#layouts = layouts;
    this.#programs = programs;
    this.#entrance = entrance;
  }

  /** One result per target, in their order. Never throws for what is wrong with a single one. */
  async prove(targets: readonly CanaryTarget[]): Promise<CanaryResult[]> {
    const results: CanaryResult[] = targets.map(() => PROVEN);
    let open: { asked: Asked; index: number }[] = [];
    const outcomes = await Promise.all(targets.map((target) => this.#ask(target)));
    outcomes.forEach((outcome, index) => {
      if ('kind' in outcome) {
        results[index] = outcome;
      } else {
        open.push(...outcome.map((asked) => ({ asked, index })));
      }
    });
    for (const wait of PATIENCE_MS) {
      if (open.length === 0) {
        break;
      }
      if (wait > 0) {
        await delay(wait);
      }
      open = open.filter(({ asked, index }) => {
        const answer = this.#answer(asked);
        if (answer === undefined) {
          return true;
        }
        results[index] = answer.kind === 'proven' ? (results[index] ?? answer) : answer;
        return false;
      });
    }
    for (const { asked, index } of open) {
      const { packets } = WORDS[asked.direction];
      const reason = `${packets} (IPv${asked.family}) do not reach our program at its interface: something else takes them first`;
      results[index] = { kind: 'unproven', reason };
    }
    return results;
  }

  /** Takes the questions of an interface away. */
  remove(ifindex: number): void {
    for (const family of FAMILIES) {
      for (const direction of ['EGRESS', 'INGRESS'] as const) {
        const { canaries, deliveries } = this.#mapsOf(direction);
        canaries.delete(this.#key(ifindex, family));
        deliveries.delete(this.#key(ifindex, family));
      }
    }
  }

  async #ask(target: CanaryTarget): Promise<readonly Asked[] | CanaryResult> {
    try {
      const directions = target.inbound === true ? (['EGRESS', 'INGRESS'] as const) : (['EGRESS'] as const);
      return (await Promise.all(directions.map((direction) => this.#askOne(target, direction)))).flat();
    } catch (error) {
      if (isKernelError(error) && SILENT.has(error.code)) {
        return { kind: 'silent', reason: error.message };
      }
      throw error;
    }
  }

  async #askOne(target: CanaryTarget, direction: FlowDirection): Promise<readonly Asked[]> {
    const questions: { readonly family: Family; readonly key: Buffer; readonly nonce: number }[] = [];
    const frames: Buffer[] = [];
    const { canaries } = this.#mapsOf(direction);
    for (const family of FAMILIES) {
      const source = target.ips.find((ip) => familyOf(ip) === family);
      if (source !== undefined) {
        const nonce = randomInt(1, 0xffff_ffff);
        const key = this.#key(target.ifindex, family);
        canaries.set(key, this.#layouts.canary.encode({ nonce }));
        frames.push(frame(family, source, nonce, direction === 'INGRESS' ? target.ifindex : 0));
        questions.push({ family, key, nonce });
      }
    }
    const unsent =
      direction === 'EGRESS'
        ? await this.#send(frames, target.ifindex, target.inside, () => this.#run(frames, target))
        : await this.#sendInbound(frames, target);
    return questions.map((question) => ({ ...question, target, direction, unsent }));
  }

  #mapsOf(direction: FlowDirection): Pick<CanaryMaps, 'canaries' | 'deliveries'> {
    const { canaries, deliveries, ingress_canaries, ingress_deliveries } = this.#maps;
    return direction === 'EGRESS'
      ? { canaries, deliveries }
      : { canaries: ingress_canaries, deliveries: ingress_deliveries };
  }

  #answer({ target, direction, key, nonce, family, unsent }: Asked): CanaryResult | undefined {
    const value = this.#mapsOf(direction).canaries.get(key);
    const { canary } = this.#layouts;
    if (value === undefined || canary.number(value, 'answered') !== nonce) {
      return undefined;
    }
    for (const field of ['endpoint', 'generation', 'instance'] as const) {
      const [is, wanted] = [canary.number(value, field), target[field]];
      if (is !== wanted) {
        const what = WORDS[direction].packets.replace('packets', 'packet');
        return { kind: 'unproven', reason: `a ${what} came out as ${field} ${is} instead of ${wanted}` };
      }
    }
    // A program that is run by itself is at no hook, where nothing can be assigned.
    return unsent === undefined ? this.#delivered(direction, key, nonce, family) : programOnly(unsent);
  }

  /** Whether the listener would have got it. Without one, the failure policy is what such a connection meets. */
  #delivered(direction: FlowDirection, key: Buffer, nonce: number, family: Family): CanaryResult {
    const { deliveryTrial, deliveries } = this.#layouts;
    const { packets, connections } = WORDS[direction];
    const trial = this.#mapsOf(direction).deliveries.get(key);
    if (trial === undefined || deliveryTrial.number(trial, 'nonce') !== nonce) {
      return { kind: 'unproven', reason: `${packets} (IPv${family}) were not tried at the listener` };
    }
    const lost = `${connections} (IPv${family}) would not reach the proxy`;
    switch (deliveryTrial.number(trial, 'outcome')) {
      case deliveries.misled:
        return {
          kind: 'unproven',
          reason: `${lost}: the kernel cannot assign its listener's socket, and its look-up finds another one or none`,
        };
      case deliveries.refused:
        return {
          kind: 'unproven',
          reason: `${lost}: the kernel refuses its listener's socket (errno ${deliveryTrial.number(trial, 'error')})`,
        };
      default:
        return PROVEN;
    }
  }

  async #sendInbound(frames: readonly Buffer[], target: CanaryTarget): Promise<string | undefined> {
    const entrance = this.#entrance();
    return entrance === undefined
      ? undefined // it stays unanswered, as any connection would
      : this.#send(frames, entrance.ifindex, entrance.outside, () => this.#runInbound(frames, target));
  }

  /** Returns why nothing could be sent, where our programs were run by themselves instead. */
  async #send(
    frames: readonly Buffer[],
    ifindex: number,
    from: CanaryTarget['inside'],
    runByItself: () => void,
  ): Promise<string | undefined> {
    if (this.#canInject) {
      try {
        for (const data of frames) {
          this.#programs.canary.inject(data, ifindex);
        }
        return undefined;
      } catch (error) {
        if (!isKernelError(error) || error.code !== 'EINVAL') {
          throw error;
        }
        this.#canInject = false; // before Linux 5.18
      }
    }
    let why = 'no source tells its network namespace';
    if (from !== undefined) {
      try {
        await this.#sendFrames(from.netns, from.name, frames);
        return undefined;
      } catch (error) {
        if (!isKernelError(error) || error.code !== 'EPERM') {
          throw error;
        }
        why = 'CAP_NET_RAW is missing';
      }
    }
    runByItself();
    return why;
  }

  #run(frames: readonly Buffer[], { ifindex }: CanaryTarget): void {
    for (const data of frames) {
      this.#programs.pod_egress.testRun({ data, context: contextOf(ifindex) });
    }
  }

  /** At the pod's interface first, as if another had received it, then at our own with the mark that it got there. */
  #runInbound(frames: readonly Buffer[], { ifindex }: CanaryTarget): void {
    const { pod_ingress, inbound_steer } = this.#programs;
    for (const data of frames) {
      const context = contextOf(ifindex);
      context.writeUInt32LE(LOOPBACK_INDEX, CONTEXT_INGRESS_IFINDEX);
      const marked = pod_ingress.testRun({ data, context }).context.readUInt32LE(CONTEXT_MARK);
      const own = contextOf(LOOPBACK_INDEX);
      own.writeUInt32LE(marked, CONTEXT_MARK);
      inbound_steer.testRun({ data, context: own });
    }
  }

  #key(ifindex: number, family: Family): Buffer {
    return this.#layouts.canaryKey.encode({ ifindex, family: AF[family] });
  }
}

function contextOf(ifindex: number): Buffer {
  const context = Buffer.alloc(CONTEXT_BYTES);
  context.writeUInt32LE(ifindex, CONTEXT_IFINDEX);
  return context;
}

const ETHERNET = Buffer.from('0180c200000e024e53000001', 'hex');
const TCP_SYN = 0x02;

/** Ethernet, IP with a hop limit of 1, TCP: RFC 791, RFC 8200, RFC 9293. */
function frame(family: Family, source: string, nonce: number, acknowledgement: number): Buffer {
  const tcp = Buffer.alloc(20);
  tcp.writeUInt16BE(1, 0); // source port; the destination's is 0
  tcp.writeUInt32BE(nonce, 4);
  tcp.writeUInt32BE(acknowledgement, 8);
  tcp[12] = 0x50;
  tcp[13] = TCP_SYN;
  const ip = family === 4 ? Buffer.alloc(20) : Buffer.alloc(40);
  if (family === 4) {
    ip[0] = 0x45;
    ip.writeUInt16BE(ip.length + tcp.length, 2);
    ip[8] = 1;
    ip[9] = 6;
    ip.set(ipToNetworkBytes(source), 12);
    ip.set([127, 0, 0, 1], 16);
    ip.writeUInt16BE(wrongChecksum(ip), 10);
  } else {
    ip[0] = 0x60;
    ip.writeUInt16BE(tcp.length, 4);
    ip[6] = 6;
    ip[7] = 1;
    ip.set(ipToNetworkBytes(source), 8);
    ip[39] = 1;
  }
  const type = Buffer.from(family === 4 ? [0x08, 0x00] : [0x86, 0xdd]);
  return Buffer.concat([ETHERNET, type, ip, tcp]);
}

/** Any value but the right one. */
function wrongChecksum(header: Buffer): number {
  let sum = 0;
  for (let offset = 0; offset < header.length; offset += 2) {
    sum += header.readUInt16BE(offset);
  }
  const folded = (sum & 0xffff) + (sum >>> 16);
  return (~folded & 0xffff) ^ 0x5555;
}
