/**
 * The endpoint tables in the kernel: which interface is which pod, under which addresses.
 *
 * Ids are never reused: row 0 of `workloads` remembers the last one given out, across agents. A pod keeps its row,
 * and with it id and generation, for as long as a source knows it and 60 s longer; enrolled anew, its generation
 * grows.
 */

import { type BpfMap, possibleCpus } from '../native/bpf.js';
import { ipToBytes } from '../pods/ip.js';
import type { PodUid } from '../pods/pod.js';
import { type Layouts, u32 } from './layouts.js';
import type { EndpointCounters } from './status.js';

const UID_BYTES = 64;
const ID_ROW = 0;

export interface EndpointRow {
  readonly uid: PodUid;
  readonly id: number;
  readonly generation: number;
  readonly ifindex: number;
}

export interface EndpointPlan {
  readonly ifindex: number;
  readonly instance: number;
  readonly failureOpen: boolean;
  readonly bridgeIndex: number;
  readonly ips: readonly string[];
}

export interface EndpointMaps {
  readonly endpoints: BpfMap;
  readonly sources: BpfMap;
  readonly workloads: BpfMap;
  readonly counters: BpfMap;
}

export class EndpointTables {
  readonly #maps: EndpointMaps;
  readonly #layouts: Layouts;
  readonly #rows = new Map<PodUid, EndpointRow>();
  readonly #byId = new Map<number, EndpointRow>();
  /** Source keys in the kernel by ifindex, as of the last `refresh`. */
  #sources = new Map<number, Set<string>>();
  #lastId = 0;

  constructor(maps: EndpointMaps, layouts: Layouts) {
    this.#maps = maps;
    this.#layouts = layouts;
    const { workload } = layouts;
    for (const [key, value] of maps.workloads.entries()) {
      const id = key.readUInt32LE(0);
      const generation = workload.number(value, 'generation');
      if (id === ID_ROW) {
        this.#lastId = Math.max(this.#lastId, generation);
        continue;
      }
      this.#lastId = Math.max(this.#lastId, id);
      const uid = workload.bytes(value, 'uid').toString('utf8').replace(/\0+$/, '') as PodUid;
      this.#remember({ uid, id, generation, ifindex: workload.number(value, 'ifindex') });
    }
    this.#ensureCounters(ID_ROW);
    this.refresh();
  }

  /** Reads the source addresses back from the kernel in one go; call it once before a round of `program`. */
  refresh(): void {
    const { sourceKey } = this.#layouts;
    this.#sources = new Map();
    for (const [key] of this.#maps.sources.entries()) {
      this.#sourcesOf(sourceKey.number(key, 'ifindex')).add(key.toString('hex'));
    }
  }

  rowOf(uid: PodUid): EndpointRow | undefined {
    return this.#rows.get(uid);
  }

  rowById(id: number): EndpointRow | undefined {
    return this.#byId.get(id);
  }

  rows(): readonly EndpointRow[] {
    return [...this.#rows.values()];
  }

  /** The row under which the pod is enrolled at `ifindex`: the one it has there, or one of a later generation. */
  enrol(uid: PodUid, ifindex: number, wasEnrolled: boolean): EndpointRow {
    const before = this.#rows.get(uid);
    if (before !== undefined && before.ifindex === ifindex && (wasEnrolled || this.isLive(before))) {
      this.#ensureCounters(before.id);
      return before;
    }
    if (Buffer.byteLength(uid) > UID_BYTES) {
      throw new RangeError(`pod uid "${uid}" is longer than ${UID_BYTES} bytes`);
    }
    let id = before?.id;
    if (id === undefined) {
      id = this.#lastId + 1;
      this.#lastId = id;
      this.#writeWorkload(ID_ROW, '', id, 0);
    }
    const row = { uid, id, generation: (before?.generation ?? 0) + 1, ifindex };
    this.#writeWorkload(id, uid, row.generation, ifindex);
    this.#ensureCounters(id);
    this.#remember(row);
    return row;
  }

  /** True where the kernel holds the endpoint of exactly this row. */
  isLive(row: EndpointRow): boolean {
    const value = this.#maps.endpoints.get(u32(row.ifindex));
    const { endpoint } = this.#layouts;
    return (
      value !== undefined &&
      endpoint.number(value, 'id') === row.id &&
      endpoint.number(value, 'generation') === row.generation
    );
  }

  /** Writes what differs, addresses before the endpoint that refers to them. Returns true if anything did. */
  program(row: EndpointRow, plan: EndpointPlan): boolean {
    const wantedSources = new Set(plan.ips.map((ip) => this.#sourceKey(plan.ifindex, ip).toString('hex')));
    const present = this.#sourcesOf(plan.ifindex);
    let changed = false;
    for (const key of wantedSources) {
      if (!present.has(key)) {
        this.#maps.sources.set(Buffer.from(key, 'hex'), Buffer.from([1]));
        present.add(key);
        changed = true;
      }
    }
    const value = this.#encode(row, plan);
    const before = this.#maps.endpoints.get(u32(plan.ifindex));
    if (before === undefined || !before.equals(value)) {
      this.#maps.endpoints.set(u32(plan.ifindex), value);
      changed = true;
    }
    for (const key of present) {
      if (!wantedSources.has(key)) {
        this.#maps.sources.delete(Buffer.from(key, 'hex'));
        present.delete(key);
        changed = true;
      }
    }
    return changed;
  }

  /** Reads back what `program` should have left; names what is missing. */
  verify(row: EndpointRow, plan: EndpointPlan): string | undefined {
    if (this.#maps.endpoints.get(u32(plan.ifindex))?.equals(this.#encode(row, plan)) !== true) {
      return `the endpoint of ifindex ${plan.ifindex} is not in the kernel as programmed`;
    }
    const missing = plan.ips.find(
      (ip) => this.#maps.sources.get(this.#sourceKey(plan.ifindex, ip)) === undefined,
    );
    return missing === undefined ? undefined : `the source address ${missing} is not in the kernel`;
  }

  /** Takes endpoint and addresses of an interface away; the row stays for those who ask who it was. */
  withdraw(ifindex: number): void {
    this.#maps.endpoints.delete(u32(ifindex));
    this.#maps.sources.deleteMany([...this.#sourcesOf(ifindex)].map((key) => Buffer.from(key, 'hex')));
    this.#sources.delete(ifindex);
  }

  /** Interfaces that the kernel holds an endpoint or a source address for. */
  liveInterfaces(): number[] {
    const endpoints = this.#maps.endpoints.entries().map(([key]) => key.readUInt32LE(0));
    return [...new Set([...endpoints, ...this.#sources.keys()])];
  }

  /** Forgets a pod for good: nobody can ask any more. */
  forget(uid: PodUid): void {
    const row = this.#rows.get(uid);
    if (row !== undefined) {
      this.#rows.delete(uid);
      this.#byId.delete(row.id);
      this.#maps.workloads.delete(u32(row.id));
      this.#maps.counters.delete(u32(row.id));
    }
  }

  counters(): EndpointCounters[] {
    const { verdicts } = this.#layouts;
    const cpus = possibleCpus();
    return this.#maps.counters.entries().map(([key, value]) => {
      const endpointId = key.readUInt32LE(0);
      const stride = value.length / cpus;
      const packets: Record<string, number> = {};
      verdicts.forEach((name, index) => {
        let total = 0n;
        for (let cpu = 0; cpu < cpus; cpu++) {
          total += value.readBigUInt64LE(cpu * stride + index * 8);
        }
        packets[name] = Number(total);
      });
      return { endpointId, podUid: this.#byId.get(endpointId)?.uid, packets };
    });
  }

  #remember(row: EndpointRow): void {
    this.#rows.set(row.uid, row);
    this.#byId.set(row.id, row);
  }

  #writeWorkload(id: number, uid: string, generation: number, ifindex: number): void {
    const value = this.#layouts.workload.encode({ uid: Buffer.from(uid), generation, ifindex });
    this.#maps.workloads.set(u32(id), value);
  }

  #ensureCounters(id: number): void {
    if (this.#maps.counters.get(u32(id)) === undefined) {
      this.#maps.counters.set(u32(id), Buffer.alloc(this.#maps.counters.valueSize));
    }
  }

  #encode(row: EndpointRow, plan: EndpointPlan): Buffer {
    const { endpoint, flags } = this.#layouts;
    return endpoint.encode({
      id: row.id,
      generation: row.generation,
      instance: plan.instance,
      flags: (plan.failureOpen ? flags.failureOpen : 0) | (plan.bridgeIndex > 0 ? flags.bridged : 0),
      bridge_ifindex: plan.bridgeIndex,
    });
  }

  #sourceKey(ifindex: number, ip: string): Buffer {
    return this.#layouts.sourceKey.encode({ ifindex, address: ipToBytes(ip) });
  }

  #sourcesOf(ifindex: number): Set<string> {
    const known = this.#sources.get(ifindex);
    if (known !== undefined) {
      return known;
    }
    const fresh = new Set<string>();
    this.#sources.set(ifindex, fresh);
    return fresh;
  }
}
