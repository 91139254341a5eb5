/** The endpoint tables in the kernel: which interface is which pod, under which addresses. */

import { u32 } from '../kernel/struct.js';
import type { BpfMap } from '../native/bpf.js';
import { bytesToIp, ipToBytes } from '../net/ip.js';
import type { PodUid } from '../pods/pod.js';
import type { SelectedDirection } from '../pods/selection.js';
import { type EndpointIdentity, Identities, type IdentityMaps } from './identities.js';
import type { Layouts } from './layouts.js';
import { MapLook } from './map-look.js';
import { type Counted, type CounterMaps, PacketCounters } from './packet-counters.js';
import { mayIntercept, type SelectionInForce } from './selection.js';
import { SELECTED, type SelectionMaps, Selections } from './selections.js';
import { type ShareMaps, Shares } from './shares.js';
import { type EndpointRow, ID_ROW, WorkloadRows } from './workload-rows.js';

export type { EndpointRow } from './workload-rows.js';

export interface EndpointPlan {
  readonly ifindex: number;
  readonly instance: number;
  readonly failureOpen: boolean;
  /** What is not TCP is dropped, but for what an address needs and the UDP ports that stay open. */
  readonly dropOther: boolean;
  readonly bridgeIndex: number;
  /** A queue behind our program limits the pod's rate: packets are passed on to it. Default false. */
  readonly shaped?: boolean;
  /** What the pod is sent is intercepted as well. Default false. */
  readonly inbound?: boolean;
  /** The pod is about to end: what others open to it is refused, what is open goes on. Default false. */
  readonly closing?: boolean;
  /** Nothing new is intercepted, only told of. Default false. */
  readonly observed?: boolean;
  /** Which new flows are intercepted, and by whom. Undefined: all, by `instance`. */
  readonly selection?: SelectionInForce | undefined;
  /** Which datagrams of UDP are. Undefined: none. */
  readonly datagrams?: SelectionInForce | undefined;
  readonly ips: readonly string[];
}

export interface EndpointMaps extends ShareMaps, CounterMaps, IdentityMaps, SelectionMaps {
  readonly endpoints: BpfMap;
  readonly sources: BpfMap;
  readonly workloads: BpfMap;
  readonly inbound: BpfMap;
}

export interface EndpointCounters extends Counted {
  readonly podUid: PodUid | undefined;
}

export class EndpointTables {
  readonly #maps: EndpointMaps;
  readonly #layouts: Layouts;
  readonly #rows: WorkloadRows;
  /** What the kernel holds by ifindex, as of the last `refresh` and of what was written since. */
  #sources = new Map<number, Set<string>>();
  /** The addresses in those, as text: putting one into words costs more than all else that is done with it. */
  readonly #texts = new Map<string, string>();
  #endpoints = new Map<number, Buffer>();
  /** Addresses by ifindex, of endpoints that are intercepted inbound. */
  #inbound = new Map<number, Set<string>>();
  readonly #looks: Readonly<Record<'sources' | 'endpoints' | 'inbound', MapLook>>;
  #version = 0;
  readonly #counters: PacketCounters;
  readonly #shares: Shares;
  readonly #identities: Identities;
  readonly #selections: Selections;

  constructor(maps: EndpointMaps, layouts: Layouts) {
    this.#maps = maps;
    this.#layouts = layouts;
    this.#looks = {
      sources: new MapLook(maps.sources),
      endpoints: new MapLook(maps.endpoints),
      inbound: new MapLook(maps.inbound),
    };
    this.#counters = new PacketCounters(maps, layouts);
    this.#shares = new Shares(maps, layouts);
    this.#selections = new Selections(maps, layouts);
    this.#rows = new WorkloadRows(maps.workloads, layouts);
    this.#counters.ensure(ID_ROW);
    this.#shares.forgetAllBut((id) => this.#rows.byId(id) !== undefined);
    this.#identities = new Identities(maps, layouts, (id) => this.#rows.byId(id) !== undefined);
    this.refresh();
    for (const row of this.rows().filter((candidate) => this.#isSinceBirth(candidate))) {
      this.#rows.markSinceBirth(row);
    }
  }

  /**
   * Reads everything back from the kernel in one go, and rows that have been taken away or changed are written again.
   * Returns what was wrong with them, in words.
   */
  refresh(isThorough = true): string[] {
    const { sourceKey } = this.#layouts;
    const sources = this.#looks.sources.changed();
    const endpoints = this.#looks.endpoints.changed();
    const inbound = this.#looks.inbound.changed();
    if (sources !== undefined) {
      this.#sources = new Map();
      this.#texts.clear();
      for (const [key] of sources) {
        this.#sourcesOf(sourceKey.number(key, 'ifindex')).add(key.toString('latin1'));
      }
    }
    if (endpoints !== undefined) {
      this.#endpoints = new Map(endpoints.map(([key, value]) => [key.readUInt32LE(0), value]));
    }
    if (inbound !== undefined) {
      this.#inbound = new Map();
      for (const [key, value] of inbound) {
        setOf(this.#inbound, value.readUInt32LE(0)).add(key.toString('latin1'));
      }
    }
    if (sources !== undefined || endpoints !== undefined || inbound !== undefined) {
      this.#version += 1;
    }
    this.#shares.drop();
    return [...this.#rows.repair(), ...this.#identities.ensure(), ...this.#selections.ensure(isThorough)];
  }

  /** Another number whenever endpoints or addresses in the kernel are others, or may be: ours or somebody else's doing. */
  get version(): number {
    return this.#version;
  }

  /** Who a proxy is told that the endpoint is: `identity` but for what the row says. */
  describe(
    row: EndpointRow,
    identity: Omit<EndpointIdentity, 'uid' | 'generation'>,
    ips: readonly string[],
  ): void {
    this.#identities.describe(row.id, { ...identity, uid: row.uid, generation: row.generation }, ips);
  }

  rowOf(uid: PodUid): EndpointRow | undefined {
    return this.#rows.of(uid);
  }

  rowById(id: number): EndpointRow | undefined {
    return this.#rows.byId(id);
  }

  rows(): readonly EndpointRow[] {
    return this.#rows.all();
  }

  /**
   * The row under which the pod is enrolled at `ifindex`: the one it has there, or one of a later generation. `isStarting`:
   * the pod has no process yet.
   */
  enrol(uid: PodUid, ifindex: number, wasEnrolled: boolean, isStarting = false): EndpointRow {
    const before = this.#rows.of(uid);
    const isSame = before?.ifindex === ifindex && (wasEnrolled || this.isLive(before));
    const row = isSame ? before : this.#rows.renew(uid, ifindex, isStarting);
    this.#counters.ensure(row.id);
    return row;
  }

  /** True where the kernel holds the endpoint of exactly this row. */
  isLive(row: EndpointRow): boolean {
    const value = this.#endpoints.get(row.ifindex);
    const { endpoint } = this.#layouts;
    return (
      value !== undefined &&
      endpoint.number(value, 'id') === row.id &&
      endpoint.number(value, 'generation') === row.generation
    );
  }

  /** Writes what differs, addresses before the endpoint that refers to them. Returns what did, in words. */
  write(row: EndpointRow, plan: EndpointPlan): string[] {
    const { ifindex } = plan;
    const wanted = new Map(plan.ips.map((ip) => [this.#sourceKey(ifindex, ip).toString('latin1'), ip]));
    const present = this.#sourcesOf(ifindex);
    const changes: string[] = [];
    for (const [key, ip] of wanted) {
      if (!present.has(key)) {
        this.#writing('sources');
        this.#maps.sources.set(Buffer.from(key, 'latin1'), Buffer.from([1]));
        present.add(key);
        changes.push(`the source address ${ip} was missing`);
      }
    }
    changes.push(...this.#writeInbound(ifindex, plan.inbound === true ? plan.ips : []));
    for (const { of, selection } of selectionsOf(plan)) {
      if (selection !== undefined && this.#selections.put(of, ifindex, selection)) {
        this.#version += 1;
        changes.push(`the selection of ${of} was not as written`);
      }
    }
    const value = this.#encode(row, plan);
    const before = this.#endpoints.get(ifindex);
    if (before === undefined || !before.equals(value)) {
      this.#writing('endpoints');
      this.#maps.endpoints.set(u32(ifindex), value);
      this.#endpoints.set(ifindex, value);
      changes.push(before === undefined ? 'the endpoint was missing' : 'the endpoint was not as written');
    }
    // Only now does nothing refer to it.
    for (const { of, selection } of selectionsOf(plan)) {
      if (selection === undefined && this.#selections.remove(of, ifindex)) {
        this.#version += 1;
        changes.push(`a selection of ${of} did not belong there`);
      }
    }
    for (const key of present) {
      if (!wanted.has(key)) {
        this.#writing('sources');
        this.#maps.sources.delete(Buffer.from(key, 'latin1'));
        present.delete(key);
        changes.push(`the source address ${this.#addressIn(key)} did not belong there`);
        this.#texts.delete(key);
      }
    }
    return changes;
  }

  /** Reads back what `program` should have left; names what is missing. */
  verify(row: EndpointRow, plan: EndpointPlan): string | undefined {
    if (this.#maps.endpoints.get(u32(plan.ifindex))?.equals(this.#encode(row, plan)) !== true) {
      return `the endpoint of ifindex ${plan.ifindex} is not in the kernel as programmed`;
    }
    for (const { of, selection } of selectionsOf(plan)) {
      if (selection !== undefined && !this.#selections.isInKernel(of, plan.ifindex, selection)) {
        return `the selection of ${of} of ifindex ${plan.ifindex} is not in the kernel as programmed`;
      }
    }
    const missing = plan.ips.find(
      (ip) => this.#maps.sources.get(this.#sourceKey(plan.ifindex, ip)) === undefined,
    );
    return missing === undefined ? undefined : `the source address ${missing} is not in the kernel`;
  }

  /** Takes endpoint and addresses of an interface away; the row stays for those who ask who it was. */
  remove(ifindex: number): void {
    this.#leaveAddresses(ifindex);
    this.#writing('endpoints');
    this.#writing('sources');
    this.#maps.endpoints.delete(u32(ifindex));
    const keys = [...this.#sourcesOf(ifindex)];
    this.#maps.sources.deleteMany(keys.map((key) => Buffer.from(key, 'latin1')));
    for (const key of keys) {
      this.#texts.delete(key);
    }
    this.#endpoints.delete(ifindex);
    for (const of of SELECTED) {
      this.#selections.remove(of, ifindex);
    }
    this.#sources.delete(ifindex);
    this.#writeInbound(ifindex, []);
  }

  /**
   * The pod is taken out: its programs stay for the connections that it has at the proxy, and let everything else alone.
   * `enrol` and `write` make it an endpoint again, of the same generation.
   */
  leave(ifindex: number): void {
    const { endpoint, flags } = this.#layouts;
    const value = this.#endpoints.get(ifindex);
    if (value === undefined) {
      return;
    }
    const offset = endpoint.offsetOf('flags');
    this.#leaveAddresses(ifindex);
    const leaving = Buffer.from(value);
    leaving.writeUInt32LE((value.readUInt32LE(offset) | flags.leaving) >>> 0, offset);
    this.#writing('endpoints');
    this.#maps.endpoints.set(u32(ifindex), leaving);
    this.#endpoints.set(ifindex, leaving);
    this.#writeInbound(ifindex, []);
  }

  /** Interfaces of endpoints that `leave`, with their addresses. */
  leaving(): ReadonlyMap<number, readonly string[]> {
    return new Map(
      [...this.#endpoints]
        .filter(([, value]) => this.#isLeaving(value))
        .map(([ifindex]) => [ifindex, [...this.#sourcesOf(ifindex)].map((key) => this.#addressIn(key))]),
    );
  }

  /** Interfaces that the kernel holds an endpoint, a source address or a selection for. */
  liveInterfaces(): number[] {
    return [
      ...new Set([...this.#endpoints.keys(), ...this.#sources.keys(), ...this.#selections.interfaces()]),
    ];
  }

  /** What the kernel holds of a pod that is not leaving, an entry per interface, as it would be written again. */
  plansOf(uid: PodUid): EndpointPlan[] {
    return [...this.#endpoints]
      .filter(([ifindex, value]) => this.ownerOf(ifindex) === uid && !this.#isLeaving(value))
      .flatMap(([ifindex]) => this.planAt(ifindex) ?? []);
  }

  /** What the kernel holds at an interface. */
  planAt(ifindex: number): EndpointPlan | undefined {
    const { endpoint, flags } = this.#layouts;
    const value = this.#endpoints.get(ifindex);
    return (
      value && {
        ifindex,
        instance: endpoint.number(value, 'instance'),
        failureOpen: (endpoint.number(value, 'flags') & flags.failureOpen) !== 0,
        dropOther: (endpoint.number(value, 'flags') & flags.dropOther) !== 0,
        shaped: (endpoint.number(value, 'flags') & flags.shaped) !== 0,
        inbound: (endpoint.number(value, 'flags') & flags.inbound) !== 0,
        closing: (endpoint.number(value, 'flags') & flags.closing) !== 0,
        observed: (endpoint.number(value, 'flags') & flags.observed) !== 0,
        bridgeIndex: endpoint.number(value, 'bridge_ifindex'),
        selection:
          (endpoint.number(value, 'flags') & flags.selective) === 0
            ? undefined
            : this.#selections.at('flows', ifindex),
        datagrams: this.#datagramsAt(ifindex, endpoint.number(value, 'flags')),
        ips: [...this.#sourcesOf(ifindex)].map((key) => this.#addressIn(key)).sort(),
      }
    );
  }

  /** The pod whose endpoint the kernel holds at an interface. */
  ownerOf(ifindex: number): PodUid | undefined {
    const value = this.#endpoints.get(ifindex);
    return value === undefined ? undefined : this.#rows.byId(this.#layouts.endpoint.number(value, 'id'))?.uid;
  }

  /** The addresses of every endpoint in the kernel, whoever decides on it. */
  addresses(): Set<string> {
    const addresses = new Set<string>();
    for (const ifindex of this.#endpoints.keys()) {
      for (const key of this.#sourcesOf(ifindex)) {
        addresses.add(this.#addressIn(key));
      }
    }
    return addresses;
  }

  /** Numbers of the instances that endpoints refer to. */
  instances(): Set<number> {
    const { endpoint } = this.#layouts;
    return new Set([
      ...[...this.#endpoints.values()].map((value) => endpoint.number(value, 'instance')),
      ...this.#selections.instances(),
    ]);
  }

  /** Whether any endpoint in the kernel is intercepted inbound. */
  hasInbound(): boolean {
    const { endpoint, flags } = this.#layouts;
    return [...this.#endpoints.values()].some(
      (value) => (endpoint.number(value, 'flags') & flags.inbound) !== 0,
    );
  }

  /** Forgets a pod for good: nobody can ask any more. */
  forget(uid: PodUid): void {
    const row = this.#rows.of(uid);
    if (row !== undefined) {
      this.#rows.forget(row);
      this.#counters.forget(row.id);
      this.#shares.forget(row.id);
      this.#identities.forget(row.id);
    }
  }

  /** Summed up over the CPUs, off the event loop. */
  async counters(): Promise<EndpointCounters[]> {
    const read = await this.#counters.read();
    return read.map((counted) => ({ ...counted, podUid: this.#rows.byId(counted.endpointId)?.uid }));
  }

  /** Looks which counters are there, off the event loop: a row that has gone is made anew by the next `enrol`. */
  recount(): Promise<void> {
    return this.#counters.recount();
  }

  #writing(map: 'sources' | 'endpoints' | 'inbound'): void {
    this.#looks[map].forget();
    this.#version += 1;
  }

  #leaveAddresses(ifindex: number): void {
    const value = this.#endpoints.get(ifindex);
    if (value !== undefined) {
      const { endpoint, sourceKey } = this.#layouts;
      const keys = [...this.#sourcesOf(ifindex)].map((key) =>
        sourceKey.bytes(Buffer.from(key, 'latin1'), 'address').toString('latin1'),
      );
      this.#identities.leave(endpoint.number(value, 'id'), keys);
    }
  }

  #writeInbound(ifindex: number, ips: readonly string[]): string[] {
    const wanted = new Map(ips.map((ip) => [Buffer.from(ipToBytes(ip)).toString('latin1'), ip]));
    const present = setOf(this.#inbound, ifindex);
    const changes: string[] = [];
    for (const [key, ip] of wanted) {
      if (!present.has(key)) {
        this.#writing('inbound');
        this.#maps.inbound.set(Buffer.from(key, 'latin1'), u32(ifindex));
        present.add(key);
        changes.push(`the inbound address ${ip} was missing`);
      }
    }
    for (const key of [...present].filter((candidate) => !wanted.has(candidate))) {
      this.#writing('inbound');
      this.#maps.inbound.delete(Buffer.from(key, 'latin1'));
      present.delete(key);
    }
    return changes;
  }

  #isLeaving(value: Buffer): boolean {
    const { endpoint, flags } = this.#layouts;
    return (endpoint.number(value, 'flags') & flags.leaving) !== 0;
  }

  #isSinceBirth(row: EndpointRow): boolean {
    const { endpoint, flags } = this.#layouts;
    const value = this.#endpoints.get(row.ifindex);
    return (
      value !== undefined &&
      this.isLive(row) &&
      (endpoint.number(value, 'flags') & flags.sinceBirth) === flags.sinceBirth
    );
  }

  #addressIn(key: string): string {
    const known = this.#texts.get(key);
    if (known !== undefined) {
      return known;
    }
    const text = bytesToIp(this.#layouts.sourceKey.bytes(Buffer.from(key, 'latin1'), 'address'));
    this.#texts.set(key, text);
    return text;
  }

  #encode(row: EndpointRow, plan: EndpointPlan): Buffer {
    const { endpoint, flags } = this.#layouts;
    return endpoint.encode({
      id: row.id,
      generation: row.generation,
      instance: plan.instance,
      flags:
        (plan.failureOpen ? flags.failureOpen : 0) |
        (plan.bridgeIndex > 0 ? flags.bridged : 0) |
        (row.sinceBirth ? flags.sinceBirth : 0) |
        (plan.dropOther ? flags.dropOther : 0) |
        (plan.shaped === true ? flags.shaped : 0) |
        (plan.inbound === true ? flags.inbound : 0) |
        (plan.closing === true ? flags.closing : 0) |
        (plan.observed === true ? flags.observed : 0) |
        (plan.selection === undefined ? 0 : flags.selective) |
        this.#udpFlags(plan.datagrams),
      bridge_ifindex: plan.bridgeIndex,
    });
  }

  #datagramsAt(ifindex: number, held: number): SelectionInForce | undefined {
    const { udpOutbound, udpInbound } = this.#layouts.flags;
    const looksAt = { outbound: (held & udpOutbound) !== 0, inbound: (held & udpInbound) !== 0 };
    const found = looksAt.outbound || looksAt.inbound ? this.#selections.at('datagrams', ifindex) : undefined;
    return found === undefined || 'outbound' in found ? found : { ...found, looksAt };
  }

  #udpFlags(datagrams: SelectionInForce | undefined): number {
    const { udpOutbound, udpInbound } = this.#layouts.flags;
    if (datagrams === undefined) {
      return 0;
    }
    const has = (direction: SelectedDirection) =>
      'outbound' in datagrams ? mayIntercept(datagrams[direction]) : datagrams.looksAt?.[direction] !== false;
    return (has('outbound') ? udpOutbound : 0) | (has('inbound') ? udpInbound : 0);
  }

  #sourceKey(ifindex: number, ip: string): Buffer {
    return this.#layouts.sourceKey.encode({ ifindex, address: ipToBytes(ip) });
  }

  #sourcesOf(ifindex: number): Set<string> {
    return setOf(this.#sources, ifindex);
  }
}

/** What is selected at an interface, each in a table of its own. */
function selectionsOf({ selection, datagrams }: EndpointPlan) {
  return [
    { of: 'flows', selection },
    { of: 'datagrams', selection: datagrams },
  ] as const;
}

function setOf(sets: Map<number, Set<string>>, ifindex: number): Set<string> {
  const known = sets.get(ifindex);
  if (known !== undefined) {
    return known;
  }
  const fresh = new Set<string>();
  sets.set(ifindex, fresh);
  return fresh;
}
