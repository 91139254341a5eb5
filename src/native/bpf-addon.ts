/** The only loader of the bpf addon, and the signatures of what is in it. Arguments are checked by the callers. */

import { loadAddon } from './addon.js';

export interface MapInfo {
  name: string;
  type: number;
  id: number;
  keySize: number;
  valueSize: number;
  maxEntries: number;
}

export interface FlatLayout {
  /** Bytes. */
  readonly size: number;
  /** Nested structs are taken apart (`address.bytes`); the field of a plain number has no name. */
  readonly fields: readonly { readonly name: string; readonly offset: number; readonly size: number }[];
}

/** What makes two maps the same. Layouts are undefined where the kernel keeps no types: SOCKMAP, ring buffer. */
export interface MapShape {
  readonly type: number;
  readonly flags: number;
  readonly keySize: number;
  /** Of one CPU, in a per-CPU map. */
  readonly valueSize: number;
  readonly maxEntries: number;
  readonly key: FlatLayout | undefined;
  readonly value: FlatLayout | undefined;
}

export interface ProgramInfo {
  readonly name: string;
  /** `enum bpf_prog_type`. */
  readonly type: number;
  readonly id: number;
  /** Hash of the instructions, hexadecimal. */
  readonly tag: string;
}

export interface NativeObject {
  setReadOnlyData(variable: string, value: Uint8Array): void;
  reuseMap(name: string, fd: number): void;
  load(): void;
  mapShape(name: string): MapShape;
  mapFd(name: string): number;
  programFd(name: string): number;
  layout(struct: string): { size: number; fields: { name: string; offset: number; size: number }[] };
  enumValues(name: string): [string, number][];
  close(): void;
}

export interface NativeRingBuffer {
  lost(): bigint;
  close(): void;
}

interface BpfAddon {
  Object: new (path: string) => NativeObject;
  RingBuffer: new (
    fd: number,
    onRecords: (records: Buffer[]) => void,
    limit: number,
    periodMs: number,
  ) => NativeRingBuffer;
  mapInfo(fd: number): MapInfo;
  mapShape(fd: number): MapShape;
  mapAddMany(
    fd: number,
    keys: Uint8Array,
    values: Uint8Array,
    keySize: number,
    valueSize: number,
  ): { added: number; refused: number };
  mapGet(fd: number, key: Uint8Array, valueSize: number): Buffer | undefined;
  mapSet(fd: number, key: Uint8Array, value: Uint8Array, flags: number): void;
  mapDelete(fd: number, key: Uint8Array): boolean;
  mapEntries(fd: number, keySize: number, valueSize: number, maxEntries: number): PackedEntries;
  mapLargest(
    fd: number,
    keySize: number,
    valueSize: number,
    maxEntries: number,
    offset: number,
    limit: number,
  ): Promise<PackedEntries>;
  mapSums(fd: number, keySize: number, valueSize: number, maxEntries: number): Promise<PackedEntries>;
  mapDeleteMany(fd: number, keys: Uint8Array, keySize: number): number;
  mapSetSocket(fd: number, key: Uint8Array, socket: number): void;
  possibleCpus(): number;
  programInfo(fd: number): ProgramInfo;
  programInfoById(id: number): ProgramInfo | undefined;
  testRun(fd: number, data: Uint8Array, context: Uint8Array, repeat: number): TestRunResult;
  inject(fd: number, data: Uint8Array, ifindex: number): void;
  pin(fd: number, path: string): void;
  openPinned(path: string, kind: 'map' | 'prog' | 'link'): number;
  isBpffs(path: string): boolean;
  mountBpffs(path: string): boolean;
  closeFd(fd: number): void;
  attachTracepoint(programFd: number, doing: string): number;
  linkCreate(programFd: number, target: number, attachType: number, doing: string): number;
  linkCreateAsync(programFd: number, target: number, attachType: number, doing: string): Promise<number>;
  linkInfo(fd: number): { id: number; programId: number; type: number };
  linkUpdate(fd: number, programFd: number): void;
  linkDetach(fd: number): void;
  attachSkMsg(programFd: number, mapFd: number, doing: string): void;
  spliceFlaws(programFd: number, mapFd: number): string[];
  queryTcx(ifindex: number, attachType: number): TcxEntry[];
  tcxPrograms(ifindexes: Uint32Array, attachType: number): Uint32Array;
  attachClsact(
    programFd: number,
    ifindex: number,
    ingress: boolean,
    priority: number,
    handle: number,
  ): boolean;
  queryClsact(ifindex: number, ingress: boolean, priority: number, handle: number): number | undefined;
  detachClsact(
    ifindex: number,
    ingress: boolean,
    priority: number,
    handle: number,
    removeQdisc: boolean,
  ): boolean;
}

/** Keys and values each packed one after the other. */
export interface PackedEntries {
  readonly count: number;
  readonly keys: Buffer;
  readonly values: Buffer;
}

export interface TcxEntry {
  readonly programId: number;
  readonly linkId: number;
}

export interface TestRunResult {
  /** As the program returned it, unsigned. */
  readonly retval: number;
  readonly data: Buffer;
  readonly context: Buffer;
  readonly durationNs: number;
}

export const addon = loadAddon<BpfAddon>('bpf');
