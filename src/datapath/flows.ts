/** The kernel's record of who sent each flow: looked up, listed, and delivered as events. */

import { inTurns } from '../base/in-turns.js';
import { TokenBucket } from '../base/token-bucket.js';
import { u32 } from '../kernel/struct.js';
import { type BpfMap, openRingBuffer, type RingBuffer } from '../native/bpf.js';
import { OPEN_BYTES, tcpOpen } from '../native/sockets.js';
import { bytesToIp, ipToBytes } from '../net/ip.js';
import type { FlowProtocol } from '../net/protocol.js';
import type { SocketAddress } from '../net/socket-address.js';
import type { Layouts } from './layouts.js';

/** IANA's. */
const NUMBERS: Readonly<Record<FlowProtocol, number>> = { tcp: 6, udp: 17 };

/** As the pod sees it: what it sends, or what it is sent. */
export type FlowDirection = 'EGRESS' | 'INGRESS';

/** EXPLICIT: the pod dialled the proxy's own address. */
export type FlowMode = 'INTERCEPTED' | 'EXPLICIT';

export interface FlowRecord {
  readonly protocol: FlowProtocol;
  readonly src: SocketAddress;
  readonly dst: SocketAddress;
  readonly endpointId: number;
  readonly generation: number;
  readonly ifindex: number;
  readonly instance: string;
  readonly direction: FlowDirection;
  readonly mode: FlowMode;
  /** Unix time, milliseconds. */
  readonly startedMs: number;
}

export interface FlowEvent extends FlowRecord {
  /** Name in `enum verdict` of bpf/include/layout.h without its prefix, such as FLOW_STARTED. */
  readonly verdict: string;
}

export interface FlowListener {
  readonly event: (event: FlowEvent) => void;
  /** There were so many more, of which nothing else is told. */
  readonly leftOut: (count: number) => void;
}

export interface FlowsOptions {
  readonly layouts: Layouts;
  readonly flows: BpfMap;
  readonly events: BpfMap;
  readonly settings: BpfMap;
  /** Tuples of observed pods that somebody was told of. */
  readonly observed: BpfMap;
  /** Name of an instance by its number in the kernel. */
  readonly instanceName: (number: number) => string;
}

/** Who follows is told of so many, and of how many more there were: each costs time in JavaScript that enrolment needs. */
const EVENTS_PER_SECOND = 2_000;
/** The programs do not wake the reader for each event. */
const PERIOD_MS = 20;
const SETTINGS_ROW = 0;

/** CLOCK_MONOTONIC, which the datapath stamps with, as Unix time. */
function unixMs(monotonicNs: number): number {
  const nowNs = Number(process.hrtime.bigint());
  return Math.round(Date.now() - (nowNs - monotonicNs) / 1e6);
}

export class Flows {
  readonly #options: FlowsOptions;
  readonly #listeners = new Set<FlowListener>();
  #ring: RingBuffer | undefined;
  readonly #told = new TokenBucket({ perSecond: EVENTS_PER_SECOND, burst: EVENTS_PER_SECOND });
  /** By rings that are closed. */
  #lost = 0;

  constructor(options: FlowsOptions) {
    this.#options = options;
    this.#setFollowed(false); // an agent before us may have died while somebody followed
  }

  /** The kernel sends events only while there is a listener. The function returned ends it. */
  onEvent(listener: FlowListener): () => void {
    this.#listeners.add(listener);
    this.#ring ??= this.#follow();
    return () => {
      if (this.#listeners.delete(listener) && this.#listeners.size === 0) {
        this.#unfollow();
      }
    };
  }

  /** Events dropped between the kernel's ring and JavaScript. */
  lost(): number {
    return this.#lost + Number(this.#ring?.lost ?? 0n);
  }

  /** Of UDP only what is not over: nothing was said on it for a while. */
  lookup(src: SocketAddress, dst: SocketAddress, protocol: FlowProtocol = 'tcp'): FlowRecord | undefined {
    const key = this.#options.layouts.flowKey.encode({
      src: ipToBytes(src.ip),
      dst: ipToBytes(dst.ip),
      sport: src.port,
      dport: dst.port,
      protocol: NUMBERS[protocol],
    });
    const value = this.#options.flows.get(key);
    return value === undefined || (protocol === 'udp' && this.#isIdle(value))
      ? undefined
      : this.#decode(protocol, src, dst, value, 'started_ns', this.#options.layouts.flow);
  }

  /** The newest flows first. Reads the whole map, off the event loop. */
  async list(limit: number): Promise<FlowRecord[]> {
    const { flowKey, flow, limits } = this.#options.layouts;
    const { count, keys, values } = await this.#options.flows.largest(flow.offsetOf('started_ns'), limit);
    const ofPods = [...Array(count).keys()].filter((index) => {
      const value = values.subarray(index * flow.size, (index + 1) * flow.size);
      const key = keys.subarray(index * flowKey.size, (index + 1) * flowKey.size);
      return (
        flow.number(value, 'endpoint') !== limits.agentEndpoint &&
        !(this.#protocolIn(key) === 'udp' && this.#isIdle(value))
      );
    });
    return inTurns(ofPods, (index) => {
      const key = keys.subarray(index * flowKey.size, (index + 1) * flowKey.size);
      const value = values.subarray(index * flow.size, (index + 1) * flow.size);
      const [src, dst] = this.#addresses(key, flowKey);
      return this.#decode(this.#protocolIn(key), src, dst, value, 'started_ns', flow);
    });
  }

  #isIdle(value: Buffer): boolean {
    const { flow, limits } = this.#options.layouts;
    return Number(process.hrtime.bigint()) / 1e9 - flow.number(value, 'seen_s') > limits.udpIdleSeconds + 1;
  }

  /** How many connections are open at each instance's listeners, by its number. Looks at every socket, mostly off the event loop. */
  async openByInstance(): Promise<Map<number, number>> {
    const { flowKey, flow } = this.#options.layouts;
    const open = await tcpOpen();
    const counts = new Map<number, number>();
    const entries = Array.from({ length: open.length / OPEN_BYTES }, (_, index) => index * OPEN_BYTES);
    await inTurns(entries, (at) => {
      const key = flowKey.encode({
        src: open.subarray(at, at + 16),
        dst: open.subarray(at + 16, at + 32),
        sport: open.readUInt16LE(at + 32),
        dport: open.readUInt16LE(at + 34),
        protocol: NUMBERS.tcp,
      });
      const value = this.#options.flows.get(key);
      if (
        value !== undefined &&
        flow.number(value, 'endpoint') !== this.#options.layouts.limits.agentEndpoint
      ) {
        const instance = flow.number(value, 'instance');
        counts.set(instance, (counts.get(instance) ?? 0) + 1);
      }
    });
    return counts;
  }

  /** Numbers of the instances that flows refer to. Reads the whole map. */
  instances(): Set<number> {
    const { flow } = this.#options.layouts;
    const { count, values } = this.#options.flows.packed();
    const found = new Set<number>();
    for (let index = 0; index < count; index++) {
      found.add(flow.number(values, 'instance', index * flow.size));
    }
    return found;
  }

  close(): void {
    this.#listeners.clear();
    this.#unfollow();
  }

  #follow(): RingBuffer {
    const { layouts, events } = this.#options;
    const since = process.hrtime.bigint();
    let lostBefore = this.#lost;
    const ring = openRingBuffer(
      events,
      (records) => {
        // What was still in the ring when the last one stopped listening is nobody's.
        const fresh = records.filter(
          (record) => record.length >= layouts.event.size && layouts.event.number(record, 'time_ns') >= since,
        );
        const told = this.#told.take(fresh.length);
        for (const record of fresh.slice(0, told)) {
          const decoded = this.#decodeEvent(record);
          for (const listener of this.#listeners) {
            listener.event(decoded);
          }
        }
        const lost = this.lost();
        const leftOut = fresh.length - told + (lost - lostBefore);
        lostBefore = lost;
        if (leftOut > 0) {
          for (const listener of this.#listeners) {
            listener.leftOut(leftOut);
          }
        }
      },
      { periodMs: PERIOD_MS },
    );
    this.#setFollowed(true);
    return ring;
  }

  #unfollow(): void {
    if (this.#ring !== undefined) {
      this.#setFollowed(false);
      this.#lost = this.lost();
      this.#ring.close();
      this.#ring = undefined;
    }
  }

  #setFollowed(followed: boolean): void {
    const { settings, observed, layouts } = this.#options;
    settings.set(u32(SETTINGS_ROW), layouts.settings.encode({ followed: followed ? 1 : 0 }));
    // Whoever follows next is told of all of them anew.
    observed.deletePacked(observed.packed().keys);
  }

  #addresses(key: Buffer, flowKey: Layouts['flowKey']): [SocketAddress, SocketAddress] {
    return [
      { ip: bytesToIp(flowKey.bytes(key, 'src')), port: flowKey.number(key, 'sport') },
      { ip: bytesToIp(flowKey.bytes(key, 'dst')), port: flowKey.number(key, 'dport') },
    ];
  }

  #protocolIn(key: Buffer): FlowProtocol {
    return this.#options.layouts.flowKey.number(key, 'protocol') === NUMBERS.udp ? 'udp' : 'tcp';
  }

  #decode(
    protocol: FlowProtocol,
    src: SocketAddress,
    dst: SocketAddress,
    value: Buffer,
    time: 'started_ns' | 'time_ns',
    struct: Layouts['flow'],
  ): FlowRecord {
    const direction = struct.number(value, 'direction');
    return {
      protocol,
      src,
      dst,
      endpointId: struct.number(value, 'endpoint'),
      generation: struct.number(value, 'generation'),
      ifindex: struct.number(value, 'ifindex'),
      instance: this.#options.instanceName(struct.number(value, 'instance')),
      direction: direction === this.#options.layouts.directions.ingress ? 'INGRESS' : 'EGRESS',
      mode: direction === this.#options.layouts.directions.explicit ? 'EXPLICIT' : 'INTERCEPTED',
      startedMs: unixMs(struct.number(value, time)),
    };
  }

  #decodeEvent(record: Buffer): FlowEvent {
    const { event, flowKey, verdicts } = this.#options.layouts;
    const key = event.bytes(record, 'key');
    const [src, dst] = this.#addresses(key, flowKey);
    const verdict = verdicts[event.number(record, 'verdict')] ?? 'UNKNOWN';
    return { ...this.#decode(this.#protocolIn(key), src, dst, record, 'time_ns', event), verdict };
  }
}
