/** The kernel's tables of selections: which selection an interface has, and what each of them says. */

import { u32 } from '../kernel/struct.js';
import type { BpfMap } from '../native/bpf.js';
import type { Layouts } from './layouts.js';
import { MapLook } from './map-look.js';
import {
  type CompiledCidrs,
  type CompiledDirection,
  compile,
  type FlowSelection,
  type SelectionInForce,
} from './selection.js';

/** What is selected, and the table that says by which row. */
const TABLES = { flows: 'selected', datagrams: 'udp_selected' } as const;
export type Selected = keyof typeof TABLES;
export const SELECTED = ['flows', 'datagrams'] as const satisfies readonly Selected[];

export interface SelectionMaps {
  readonly selected: BpfMap;
  readonly udp_selected: BpfMap;
  readonly selections: BpfMap;
  readonly port_pages: BpfMap;
  readonly cidrs: BpfMap;
}

/** A table of which we know every entry: what was written, or found at the start. */
interface Known {
  readonly map: BpfMap;
  readonly look: MapLook;
  /** Keys as latin1. */
  readonly entries: Map<string, Buffer>;
  /** Keys by value, both as latin1. */
  readonly keys: Map<string, string>;
}

type TableName = keyof SelectionMaps;

/** What a set's entries are without its number, in one text. */
const textOf = (entries: Iterable<readonly [string, number]>): string =>
  [...entries]
    .map(([key, flags]) => key + flags)
    .sort()
    .join();

export class Selections {
  readonly #layouts: Layouts;
  readonly #tables: Readonly<Record<TableName, Known>>;
  /** By their number; those of an agent before us are not known by their words. */
  readonly #words = new Map<number, FlowSelection>();
  /** By the key of the selection. */
  readonly #numbers = new Map<string, number>();
  /** Sets that are in the kernel, by what they were made of. */
  #setNumbers = new WeakMap<CompiledCidrs, number>();
  #hasUnused = true;

  constructor(maps: SelectionMaps, layouts: Layouts) {
    this.#layouts = layouts;
    const known = (map: BpfMap): Known => {
      const look = new MapLook(map);
      const entries = look.changed() ?? [];
      const texts = entries.map(([key, value]) => [latin1(value), latin1(key)] as const);
      const held = entries.map(([key, value]) => [latin1(key), Buffer.from(value)] as const);
      return { map, look, entries: new Map(held), keys: new Map(texts) };
    };
    this.#tables = {
      selected: known(maps.selected),
      udp_selected: known(maps.udp_selected),
      selections: known(maps.selections),
      port_pages: known(maps.port_pages),
      cidrs: known(maps.cidrs),
    };
  }

  /** Interfaces that have a selection in the kernel. */
  interfaces(): number[] {
    return SELECTED.flatMap((of) => [...this.#tables[TABLES[of]].entries.keys()].map(numberIn));
  }

  /** Undefined: none. */
  at(of: Selected, ifindex: number): SelectionInForce | undefined {
    const value = this.#tables[TABLES[of]].entries.get(latin1(u32(ifindex)));
    if (value === undefined) {
      return undefined;
    }
    const number = value.readUInt32LE(0);
    return this.#words.get(number) ?? { key: `#${number}`, number };
  }

  /** Returns whether it had another one, or none. */
  put(of: Selected, ifindex: number, selection: SelectionInForce): boolean {
    const number = this.#numberOf(selection);
    const key = latin1(u32(ifindex));
    if (this.#tables[TABLES[of]].entries.get(key)?.readUInt32LE(0) === number) {
      return false;
    }
    this.#write(TABLES[of], key, u32(number));
    this.#hasUnused = true;
    return true;
  }

  /** Returns whether it had one. */
  remove(of: Selected, ifindex: number): boolean {
    this.#hasUnused ||= this.#tables[TABLES[of]].entries.has(latin1(u32(ifindex)));
    return this.#delete(TABLES[of], latin1(u32(ifindex)));
  }

  /** Whether the kernel holds exactly this for the interface. */
  isInKernel(of: Selected, ifindex: number, selection: SelectionInForce): boolean {
    const held = this.#tables[TABLES[of]].map.get(u32(ifindex))?.readUInt32LE(0);
    return held !== undefined && held === this.#numberOf(selection);
  }

  /** Numbers of the instances that some selection names. */
  instances(): Set<number> {
    const found = new Set<number>();
    const first = this.#layouts.selected.instance;
    for (const page of this.#tables.port_pages.entries.values()) {
      for (let at = 0; at < page.length; at += 2) {
        const what = page.readUInt16LE(at);
        if (what >= first) {
          found.add(what - first);
        }
      }
    }
    return found;
  }

  /** Puts right what somebody else has changed, and takes away what no interface has any more. Returns the former, in words. */
  ensure(isThorough: boolean): string[] {
    this.#forgetUnused();
    const names: readonly TableName[] = isThorough ? ['selections', 'port_pages', 'cidrs'] : [];
    return [...names, ...Object.values(TABLES)].flatMap((name) => this.#repair(name));
  }

  #repair(name: TableName): string[] {
    const { map, look, entries } = this.#tables[name];
    const found = look.changed();
    if (found === undefined) {
      return [];
    }
    const held = new Map(found.map(([key, value]) => [latin1(key), value]));
    const lost = [...entries].filter(([key, value]) => held.get(key)?.equals(value) !== true);
    const foreign = [...held.keys()].filter((key) => !entries.has(key));
    for (const [key, value] of lost) {
      map.set(Buffer.from(key, 'latin1'), value);
    }
    map.deleteMany(foreign.map((key) => Buffer.from(key, 'latin1')));
    const count = lost.length + foreign.length;
    if (count === 0) {
      return [];
    }
    look.forget();
    return [`${count} ${count === 1 ? 'entry' : 'entries'} of ${name}`];
  }

  #numberOf(selection: SelectionInForce): number {
    if (!('outbound' in selection)) {
      return selection.number;
    }
    const known = this.#numbers.get(selection.key);
    if (known !== undefined) {
      return known;
    }
    const value = this.#encode(selection);
    const same = this.#tables.selections.keys.get(latin1(value));
    const number = same === undefined ? this.#free('selections') : numberIn(same);
    if (same === undefined) {
      this.#write('selections', latin1(u32(number)), value);
    }
    this.#numbers.set(selection.key, number);
    this.#words.set(number, selection);
    return number;
  }

  /** Writes what it refers to. */
  #encode(selection: FlowSelection): Buffer {
    const { selection: row, choice } = this.#layouts;
    const value = Buffer.alloc(row.size);
    // In the order of `enum direction`.
    [selection.outbound, selection.inbound].forEach((direction, index) => {
      const compiled = compile(direction);
      const cidrs = Buffer.alloc(choice.sizeOf('cidrs'));
      compiled.cidrs.forEach((set, layer) => {
        cidrs.writeUInt32LE(set === undefined ? 0 : this.#set(set), layer * 4);
      });
      const included = compiled.cidrs.reduce(
        (bits, set, layer) => bits | (set?.mustBeIncluded === true ? 1 << layer : 0),
        0,
      );
      value.set(choice.encode({ pages: this.#pages(compiled), cidrs, included }), index * choice.size);
    });
    return value;
  }

  #pages({ ports }: CompiledDirection): Buffer {
    const { choice, portPage } = this.#layouts;
    const pages = Buffer.alloc(choice.sizeOf('pages'));
    const bytes = Buffer.from(ports.buffer, ports.byteOffset, ports.byteLength);
    const { keys } = this.#tables.port_pages;
    for (let index = 0; index * portPage.size < bytes.length; index++) {
      const page = bytes.subarray(index * portPage.size, (index + 1) * portPage.size);
      let key = keys.get(latin1(page));
      if (key === undefined) {
        key = latin1(u32(this.#free('port_pages')));
        this.#write('port_pages', key, Buffer.from(page));
      }
      pages.writeUInt16LE(numberIn(key), index * 2);
    }
    return pages;
  }

  #set(compiled: CompiledCidrs): number {
    const known = this.#setNumbers.get(compiled);
    if (known !== undefined) {
      return known;
    }
    const number = this.#findSet(compiled) ?? this.#writeSet(compiled);
    this.#setNumbers.set(compiled, number);
    return number;
  }

  #flagged({ prefixes }: CompiledCidrs): (readonly [string, number])[] {
    const { excluded, included } = this.#layouts.cidrFlags;
    return [...prefixes].map(([key, flags]) => [
      key,
      (flags.excluded ? excluded : 0) | (flags.included ? included : 0),
    ]);
  }

  #findSet(compiled: CompiledCidrs): number | undefined {
    const wanted = this.#flagged(compiled);
    const text = textOf(wanted);
    return [...this.#sets()].find(([, set]) => set.length === wanted.length && textOf(set) === text)?.[0];
  }

  #writeSet(compiled: CompiledCidrs): number {
    const { cidrKey } = this.#layouts;
    const used = new Set(this.#sets().keys());
    let number = 1;
    while (used.has(number)) {
      number += 1;
    }
    const setBits = cidrKey.sizeOf('set') * 8;
    // What is left of it, should it fail half way, is of no row: the next look takes it away.
    this.#hasUnused = true;
    for (const [key, flags] of this.#flagged(compiled)) {
      const bytes = Buffer.from(key, 'latin1');
      const encoded = cidrKey.encode({
        prefix_length: setBits + (bytes[16] ?? 0),
        set: number,
        address: bytes.subarray(0, 16),
      });
      this.#write('cidrs', latin1(encoded), u32(flags));
    }
    return number;
  }

  /** Prefixes as `compile` has them, with their flags. */
  #sets(): Map<number, [string, number][]> {
    const { cidrKey } = this.#layouts;
    const setBits = cidrKey.sizeOf('set') * 8;
    const sets = new Map<number, [string, number][]>();
    for (const [key, flags] of this.#tables.cidrs.entries) {
      const encoded = Buffer.from(key, 'latin1');
      const length = cidrKey.number(encoded, 'prefix_length') - setBits;
      const prefix = Buffer.concat([cidrKey.bytes(encoded, 'address'), Buffer.from([length])]);
      const number = cidrKey.number(encoded, 'set');
      const others = sets.get(number) ?? [];
      others.push([latin1(prefix), flags.readUInt32LE(0)]);
      sets.set(number, others);
    }
    return sets;
  }

  #free(name: 'selections' | 'port_pages'): number {
    const { entries } = this.#tables[name];
    // Where none has gone, those before are taken.
    let number = entries.size;
    while (entries.has(latin1(u32(number)))) {
      number += 1;
    }
    return number;
  }

  #forgetUnused(): void {
    if (!this.#hasUnused) {
      return;
    }
    this.#hasUnused = false;
    const { selections, port_pages, cidrs } = this.#tables;
    const used = new Set(
      Object.values(TABLES).flatMap((name) => [...this.#tables[name].entries.values()].map(latin1)),
    );
    for (const key of [...selections.entries.keys()].filter((candidate) => !used.has(candidate))) {
      this.#delete('selections', key);
      const number = numberIn(key);
      for (const words of [...this.#numbers].filter(([, other]) => other === number)) {
        this.#numbers.delete(words[0]);
      }
      this.#words.delete(number);
    }
    const { choice } = this.#layouts;
    const pages = new Set<number>();
    const sets = new Set<number>();
    for (const row of selections.entries.values()) {
      for (let base = 0; base < row.length; base += choice.size) {
        const one = row.subarray(base, base + choice.size);
        for (const number of numbersIn(choice.bytes(one, 'pages'), 2)) {
          pages.add(number);
        }
        for (const number of numbersIn(choice.bytes(one, 'cidrs'), 4)) {
          sets.add(number);
        }
      }
    }
    for (const key of [...port_pages.entries.keys()].filter((candidate) => !pages.has(numberIn(candidate)))) {
      this.#delete('port_pages', key);
    }
    const { cidrKey } = this.#layouts;
    for (const key of [...cidrs.entries.keys()]) {
      if (!sets.has(cidrKey.number(Buffer.from(key, 'latin1'), 'set')) && this.#delete('cidrs', key)) {
        this.#setNumbers = new WeakMap();
      }
    }
  }

  #write(name: TableName, key: string, value: Buffer): void {
    const { map, look, entries, keys } = this.#tables[name];
    map.set(Buffer.from(key, 'latin1'), value);
    entries.set(key, value);
    keys.set(latin1(value), key);
    look.forget();
  }

  #delete(name: TableName, key: string): boolean {
    const { map, look, entries, keys } = this.#tables[name];
    const value = entries.get(key);
    if (value === undefined) {
      return false;
    }
    entries.delete(key);
    keys.delete(latin1(value));
    map.delete(Buffer.from(key, 'latin1'));
    look.forget();
    return true;
  }
}

function latin1(bytes: Buffer): string {
  return bytes.toString('latin1');
}

function numberIn(key: string): number {
  return Buffer.from(key, 'latin1').readUInt32LE(0);
}

function numbersIn(bytes: Buffer, size: number): number[] {
  return Array.from({ length: bytes.length / size }, (_, index) => bytes.readUIntLE(index * size, size));
}
