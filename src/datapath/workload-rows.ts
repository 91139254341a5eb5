/**
 * Which pod an endpoint's id stands for, kept in the kernel across agents. Ids are never reused: row 0 remembers the last
 * one given out. A pod keeps its row, and with it id and generation, for as long as a source knows it and a while longer;
 * enrolled anew, its generation grows.
 */

import { u32 } from '../kernel/struct.js';
import type { BpfMap } from '../native/bpf.js';
import type { PodUid } from '../pods/pod.js';
import type { Layouts } from './layouts.js';
import { MapLook } from './map-look.js';

const UID_BYTES = 64;
/** The row of the last id. */
export const ID_ROW = 0;

export interface EndpointRow {
  readonly uid: PodUid;
  readonly id: number;
  readonly generation: number;
  readonly ifindex: number;
  /** Enrolled before the pod's first process: no connection of it can be older than its enrolment. */
  readonly sinceBirth: boolean;
}

export class WorkloadRows {
  readonly #map: BpfMap;
  readonly #layouts: Pick<Layouts, 'workload'>;
  readonly #look: MapLook;
  readonly #byUid = new Map<PodUid, EndpointRow>();
  readonly #byId = new Map<number, EndpointRow>();
  #lastId = 0;

  /** Goes on with what an agent before us has left. */
  constructor(map: BpfMap, layouts: Pick<Layouts, 'workload'>) {
    this.#map = map;
    this.#layouts = layouts;
    this.#look = new MapLook(map);
    const { workload } = layouts;
    for (const [key, value] of map.entries()) {
      const id = key.readUInt32LE(0);
      const generation = workload.number(value, 'generation');
      this.#lastId = Math.max(this.#lastId, id === ID_ROW ? generation : id);
      if (id !== ID_ROW) {
        const uid = workload.bytes(value, 'uid').toString('utf8').replace(/\0+$/, '') as PodUid;
        const ifindex = workload.number(value, 'ifindex');
        this.#remember({ uid, id, generation, ifindex, sinceBirth: false });
      }
    }
  }

  all(): readonly EndpointRow[] {
    return [...this.#byUid.values()];
  }

  of(uid: PodUid): EndpointRow | undefined {
    return this.#byUid.get(uid);
  }

  byId(id: number): EndpointRow | undefined {
    return this.#byId.get(id);
  }

  /** The pod's row at this interface: its first one, or one of the next generation. Throws RangeError for an endless UID. */
  renew(uid: PodUid, ifindex: number, sinceBirth: boolean): EndpointRow {
    if (Buffer.byteLength(uid) > UID_BYTES) {
      throw new RangeError(`pod uid "${uid}" is longer than ${UID_BYTES} bytes`);
    }
    const before = this.#byUid.get(uid);
    const id = before?.id ?? this.#nextId();
    const row = { uid, id, generation: (before?.generation ?? 0) + 1, ifindex, sinceBirth };
    this.#write(row);
    this.#remember(row);
    return row;
  }

  /** Known of a row that an agent before us has written by what the kernel holds of its endpoint. */
  markSinceBirth(row: EndpointRow): void {
    this.#remember({ ...row, sinceBirth: true });
  }

  /** Nobody can ask any more. */
  forget(row: EndpointRow): void {
    this.#byUid.delete(row.uid);
    this.#byId.delete(row.id);
    this.#look.forget();
    this.#map.delete(u32(row.id));
  }

  /** Writes again what has been taken away or changed. Returns what, in words. */
  repair(): string[] {
    const entries = this.#look.changed();
    if (entries === undefined) {
      return [];
    }
    const held = new Map(entries.map(([key, value]) => [key.readUInt32LE(0), value]));
    const wrong: string[] = [];
    const last = held.get(ID_ROW);
    // Without any id there is nothing to remember; a higher one than ours nobody else can have given out.
    if (
      this.#lastId > 0 &&
      (last === undefined || this.#layouts.workload.number(last, 'generation') !== this.#lastId)
    ) {
      this.#writeLastId();
      wrong.push('the row of the last id');
    }
    for (const row of this.#byUid.values()) {
      if (held.get(row.id)?.equals(this.#encode(row)) !== true) {
        this.#write(row);
        wrong.push(`the workload row of endpoint ${row.id}`);
      }
    }
    return wrong;
  }

  #nextId(): number {
    this.#lastId += 1;
    this.#writeLastId();
    return this.#lastId;
  }

  #remember(row: EndpointRow): void {
    this.#byUid.set(row.uid, row);
    this.#byId.set(row.id, row);
  }

  #writeLastId(): void {
    this.#look.forget();
    this.#map.set(u32(ID_ROW), this.#encode({ uid: '', generation: this.#lastId, ifindex: 0 }));
  }

  #write(row: EndpointRow): void {
    this.#look.forget();
    this.#map.set(u32(row.id), this.#encode(row));
  }

  #encode({ uid, generation, ifindex }: { uid: string; generation: number; ifindex: number }): Buffer {
    return this.#layouts.workload.encode({ uid: Buffer.from(uid), generation, ifindex });
  }
}
