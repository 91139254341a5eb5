/** BPF objects, maps, programs, links and ring buffers. Kernel errors are `KernelError`, wrong arguments TypeError. */

import {
  checkBytes,
  checkFd,
  checkFunction,
  checkOneOf,
  checkPositive,
  checkText,
  loadAddon,
} from './addon.js';

interface MapInfo {
  name: string;
  type: number;
  id: number;
  keySize: number;
  valueSize: number;
  maxEntries: number;
}

export interface ProgramInfo {
  readonly name: string;
  /** `enum bpf_prog_type`. */
  readonly type: number;
  readonly id: number;
  /** Hash of the instructions, hexadecimal. */
  readonly tag: string;
}

interface NativeObject {
  setReadOnlyData(variable: string, value: Uint8Array): void;
  reuseMap(name: string, fd: number): void;
  load(): void;
  mapFd(name: string): number;
  programFd(name: string): number;
  layout(struct: string): { size: number; fields: { name: string; offset: number; size: number }[] };
  enumValues(name: string): [string, number][];
  close(): void;
}

interface NativeRingBuffer {
  lost(): bigint;
  close(): void;
}

interface Addon {
  Object: new (path: string) => NativeObject;
  RingBuffer: new (fd: number, onRecords: (records: Buffer[]) => void, limit: number) => NativeRingBuffer;
  mapInfo(fd: number): MapInfo;
  mapGet(fd: number, key: Uint8Array, valueSize: number): Buffer | undefined;
  mapSet(fd: number, key: Uint8Array, value: Uint8Array, flags: number): void;
  mapDelete(fd: number, key: Uint8Array): boolean;
  mapEntries(fd: number, keySize: number, valueSize: number): { count: number; keys: Buffer; values: Buffer };
  mapDeleteMany(fd: number, keys: Uint8Array, keySize: number): number;
  mapSetSocket(fd: number, key: Uint8Array, socket: number): void;
  possibleCpus(): number;
  programInfo(fd: number): ProgramInfo;
  programInfoById(id: number): ProgramInfo | undefined;
  testRun(fd: number, data: Uint8Array, context: Uint8Array, repeat: number): TestRunResult;
  pin(fd: number, path: string): void;
  openPinned(path: string): number;
  isBpffs(path: string): boolean;
  mountBpffs(path: string): boolean;
  closeFd(fd: number): void;
  linkCreate(programFd: number, target: number, attachType: number, doing: string): number;
  linkInfo(fd: number): { id: number; programId: number; type: number };
  linkUpdate(fd: number, programFd: number): void;
  linkDetach(fd: number): void;
  queryTcx(ifindex: number, attachType: number): TcxEntry[];
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
  attachSkMsg(programFd: number, mapFd: number): void;
  detachSkMsg(programFd: number, mapFd: number): void;
  attachCgroup(programFd: number, path: string, attachType: number): number;
}

const addon = loadAddon<Addon>('bpf');

const BPF_SK_LOOKUP = 36;
const TCX = { ingress: 46, egress: 47 } as const;
const CGROUP = { skb_ingress: 0, skb_egress: 1, sock_ops: 3 } as const;
const UPDATE_FLAGS = { any: 0, create: 1, replace: 2 } as const;
const CONTEXT_LIMIT = 4096;

export type TcxDirection = keyof typeof TCX;
export type CgroupAttachType = keyof typeof CGROUP;

export interface TcxEntry {
  readonly programId: number;
  readonly linkId: number;
}

export interface StructField {
  /** Bytes. */
  readonly offset: number;
  readonly size: number;
}

export interface StructLayout {
  readonly name: string;
  readonly size: number;
  readonly fields: ReadonlyMap<string, StructField>;
}

export interface TestRunResult {
  /** As the program returned it, unsigned. */
  readonly retval: number;
  readonly data: Buffer;
  readonly context: Buffer;
  readonly durationNs: number;
}

/** Descriptors of objects that were dropped without `close()`. */
const leftovers = new FinalizationRegistry<number>((fd) => addon.closeFd(fd));

/** Owns one descriptor; `close()` may be called any number of times. */
class Handle {
  #fd: number | undefined;
  readonly #what: string;

  constructor(fd: number, what: string) {
    this.#fd = fd;
    this.#what = what;
    leftovers.register(this, fd, this);
  }

  /** @internal */
  get fd(): number {
    if (this.#fd === undefined) {
      throw new TypeError(`this ${this.#what} is closed`);
    }
    return this.#fd;
  }

  pin(path: string): void {
    checkText(path, 'path');
    addon.pin(this.fd, path);
  }

  close(): void {
    if (this.#fd !== undefined) {
      leftovers.unregister(this);
      addon.closeFd(this.#fd);
      this.#fd = undefined;
    }
  }
}

export class BpfMap extends Handle {
  readonly name: string;
  /** `enum bpf_map_type`. */
  readonly type: number;
  readonly id: number;
  readonly keySize: number;
  /** As user space sees it: of a per-CPU map one value, rounded up to 8 bytes, for each possible CPU. */
  readonly valueSize: number;
  readonly maxEntries: number;

  /** Takes the descriptor over. */
  constructor(fd: number) {
    super(fd, 'map');
    const info = addon.mapInfo(fd);
    this.name = info.name;
    this.type = info.type;
    this.id = info.id;
    this.keySize = info.keySize;
    this.valueSize = info.valueSize;
    this.maxEntries = info.maxEntries;
  }

  static openPinned(path: string): BpfMap {
    checkText(path, 'path');
    return new BpfMap(addon.openPinned(path));
  }

  /** Of a SOCKMAP with values of 8 bytes: the socket's cookie. */
  get(key: Uint8Array): Buffer | undefined {
    checkBytes(key, 'key', this.keySize);
    return addon.mapGet(this.fd, key, this.valueSize);
  }

  set(key: Uint8Array, value: Uint8Array, mode: keyof typeof UPDATE_FLAGS = 'any'): void {
    checkBytes(key, 'key', this.keySize);
    checkBytes(value, 'value', this.valueSize);
    checkOneOf(mode, 'mode', ['any', 'create', 'replace']);
    addon.mapSet(this.fd, key, value, UPDATE_FLAGS[mode]);
  }

  /** False where there was no such entry. */
  delete(key: Uint8Array): boolean {
    checkBytes(key, 'key', this.keySize);
    return addon.mapDelete(this.fd, key);
  }

  /** Puts the socket behind `fd` into a SOCKMAP or SOCKHASH with values of 8 bytes; the map keeps no reference. */
  setSocket(key: Uint8Array, fd: number): void {
    checkBytes(key, 'key', this.keySize);
    checkFd(fd);
    if (this.valueSize !== 8) {
      throw new TypeError(`map ${this.name} must have values of 8 bytes to take a socket`);
    }
    addon.mapSetSocket(this.fd, key, fd);
  }

  /** Key and value of every entry; in batches where the map type has them. Entries may come and go meanwhile. */
  entries(): [Buffer, Buffer][] {
    const { count, keys, values } = addon.mapEntries(this.fd, this.keySize, this.valueSize);
    return Array.from({ length: count }, (_, i) => [
      keys.subarray(i * this.keySize, (i + 1) * this.keySize),
      values.subarray(i * this.valueSize, (i + 1) * this.valueSize),
    ]);
  }

  /** How many of the keys were there. */
  deleteMany(keys: readonly Uint8Array[]): number {
    keys.forEach((key, index) => {
      checkBytes(key, `keys[${index}]`, this.keySize);
    });
    return addon.mapDeleteMany(this.fd, Buffer.concat(keys), this.keySize);
  }
}

export class BpfProgram extends Handle implements ProgramInfo {
  readonly name: string;
  readonly type: number;
  readonly id: number;
  readonly tag: string;

  /** Takes the descriptor over. */
  constructor(fd: number) {
    super(fd, 'program');
    const info = addon.programInfo(fd);
    this.name = info.name;
    this.type = info.type;
    this.id = info.id;
    this.tag = info.tag;
  }

  static openPinned(path: string): BpfProgram {
    checkText(path, 'path');
    return new BpfProgram(addon.openPinned(path));
  }

  /** BPF_PROG_TEST_RUN; `context` is a `struct __sk_buff` for tc programs. */
  testRun(input: { data: Uint8Array; context?: Uint8Array; repeat?: number }): TestRunResult {
    const { data, context = new Uint8Array(0), repeat = 1 } = input;
    checkBytes(data, 'data');
    checkBytes(context, 'context');
    checkPositive(repeat, 'repeat');
    if (context.length > CONTEXT_LIMIT) {
      throw new TypeError(`context must have at most ${CONTEXT_LIMIT} bytes`);
    }
    return addon.testRun(this.fd, data, context, repeat);
  }
}

export class BpfLink extends Handle {
  readonly id: number;

  /** Takes the descriptor over. */
  constructor(fd: number) {
    super(fd, 'link');
    this.id = addon.linkInfo(fd).id;
  }

  static openPinned(path: string): BpfLink {
    checkText(path, 'path');
    return new BpfLink(addon.openPinned(path));
  }

  /** Asked anew each time: others may have exchanged it. */
  get programId(): number {
    return addon.linkInfo(this.fd).programId;
  }

  /** Exchanges the program atomically. */
  update(program: BpfProgram): void {
    checkProgram(program);
    addon.linkUpdate(this.fd, program.fd);
  }

  /** Takes the program off, whoever else holds or pins the link. */
  detach(): void {
    addon.linkDetach(this.fd);
  }
}

/** A compiled object file: open, adjust, `load()`, then take maps and programs out of it. */
export class BpfObject {
  readonly #path: string;
  readonly #native: NativeObject;

  private constructor(path: string) {
    this.#path = path;
    this.#native = new addon.Object(path);
  }

  static open(path: string): BpfObject {
    checkText(path, 'path');
    return new BpfObject(path);
  }

  /** Before `load`: sets a `const volatile` variable, found by name. RangeError if there is none of that size. */
  setReadOnlyData(variable: string, value: Uint8Array): void {
    checkText(variable, 'variable');
    checkBytes(value, 'value');
    this.#native.setReadOnlyData(variable, value);
  }

  /** Before `load`: use `map` instead of creating one. KernelError EINVAL if it is of another shape. */
  reuseMap(name: string, map: BpfMap): void {
    checkText(name, 'name');
    if (!(map instanceof BpfMap)) {
      throw new TypeError('map must be a BpfMap');
    }
    this.#native.reuseMap(name, map.fd);
  }

  /** KernelError with the verifier's `log` where the kernel refuses. */
  load(): void {
    this.#native.load();
  }

  /** A descriptor of its own: outlives the object. */
  map(name: string): BpfMap {
    checkText(name, 'name');
    return new BpfMap(this.#native.mapFd(name));
  }

  /** A descriptor of its own: outlives the object. */
  program(name: string): BpfProgram {
    checkText(name, 'name');
    return new BpfProgram(this.#native.programFd(name));
  }

  /** From the object's BTF. RangeError where it has no such struct. */
  layout(struct: string): StructLayout {
    checkText(struct, 'struct');
    const { size, fields } = this.#native.layout(struct);
    return { name: struct, size, fields: new Map(fields.map((field) => [field.name, field])) };
  }

  /** From the object's BTF. RangeError where it has no such enum. */
  enumValues(name: string): ReadonlyMap<string, number> {
    checkText(name, 'name');
    return new Map(this.#native.enumValues(name));
  }

  close(): void {
    this.#native.close();
  }

  toString(): string {
    return `BpfObject(${this.#path})`;
  }
}

function checkProgram(program: unknown): asserts program is BpfProgram {
  if (!(program instanceof BpfProgram)) {
    throw new TypeError('program must be a BpfProgram');
  }
}

function checkDirection(direction: unknown): asserts direction is TcxDirection {
  checkOneOf(direction, 'direction', ['ingress', 'egress']);
}

let tcxKnown: boolean | undefined;

/** Whether this kernel has tcx (6.6): a query of an interface that every namespace has answers it. */
export function tcxSupported(): boolean {
  if (tcxKnown === undefined) {
    try {
      addon.queryTcx(1, TCX.ingress);
      tcxKnown = true;
    } catch (error) {
      if ((error as { code?: string }).code !== 'EINVAL') {
        throw error;
      }
      tcxKnown = false;
    }
  }
  return tcxKnown;
}

/** After whatever is attached already; a link stays beside others'. */
export function attachTcx(program: BpfProgram, ifindex: number, direction: TcxDirection): BpfLink {
  checkProgram(program);
  checkPositive(ifindex, 'ifindex');
  checkDirection(direction);
  const doing = `attaching ${program.name} to tcx ${direction} of ifindex ${ifindex}`;
  return new BpfLink(addon.linkCreate(program.fd, ifindex, TCX[direction], doing));
}

/** In the order in which they run. */
export function queryTcx(ifindex: number, direction: TcxDirection): TcxEntry[] {
  checkPositive(ifindex, 'ifindex');
  checkDirection(direction);
  return addon.queryTcx(ifindex, TCX[direction]);
}

/** Where among the filters of a clsact hook: nobody else's filter is touched. */
export interface ClsactPlace {
  readonly priority: number;
  readonly handle: number;
}

function checkPlace(place: ClsactPlace): void {
  checkPositive(place?.priority, 'priority');
  checkPositive(place?.handle, 'handle');
}

/** For kernels without tcx. Replaces a filter at the same place only. True where the qdisc had to be created. */
export function attachClsact(
  program: BpfProgram,
  ifindex: number,
  direction: TcxDirection,
  place: ClsactPlace,
): boolean {
  checkProgram(program);
  checkPositive(ifindex, 'ifindex');
  checkDirection(direction);
  checkPlace(place);
  return addon.attachClsact(program.fd, ifindex, direction === 'ingress', place.priority, place.handle);
}

export function queryClsact(
  ifindex: number,
  direction: TcxDirection,
  place: ClsactPlace,
): { readonly programId: number } | undefined {
  checkPositive(ifindex, 'ifindex');
  checkDirection(direction);
  checkPlace(place);
  const programId = addon.queryClsact(ifindex, direction === 'ingress', place.priority, place.handle);
  return programId === undefined ? undefined : { programId };
}

/** False where no filter was there. `removeQdisc` takes the whole clsact qdisc along: only for who created it. */
export function detachClsact(
  ifindex: number,
  direction: TcxDirection,
  place: ClsactPlace & { readonly removeQdisc?: boolean },
): boolean {
  checkPositive(ifindex, 'ifindex');
  checkDirection(direction);
  checkPlace(place);
  return addon.detachClsact(
    ifindex,
    direction === 'ingress',
    place.priority,
    place.handle,
    place.removeQdisc === true,
  );
}

/** Attaches beside others (BPF_F_ALLOW_MULTI is implied by links). */
export function attachCgroup(program: BpfProgram, cgroupPath: string, type: CgroupAttachType): BpfLink {
  checkProgram(program);
  checkText(cgroupPath, 'cgroupPath');
  checkOneOf(type, 'type', ['sock_ops', 'skb_ingress', 'skb_egress']);
  return new BpfLink(addon.attachCgroup(program.fd, cgroupPath, CGROUP[type]));
}

/** To every socket in a SOCKMAP or SOCKHASH, now and later. */
export function attachSkMsg(program: BpfProgram, map: BpfMap): void {
  checkProgram(program);
  addon.attachSkMsg(program.fd, map.fd);
}

export function detachSkMsg(program: BpfProgram, map: BpfMap): void {
  checkProgram(program);
  addon.detachSkMsg(program.fd, map.fd);
}

/** To the network namespace behind `netnsFd`, after whatever is attached already. */
export function attachSkLookup(program: BpfProgram, netnsFd: number): BpfLink {
  checkProgram(program);
  checkFd(netnsFd, 'netnsFd');
  return new BpfLink(
    addon.linkCreate(program.fd, netnsFd, BPF_SK_LOOKUP, `attaching ${program.name} to sk_lookup`),
  );
}

/** Any program on this machine; undefined where there is none of that id. */
export function programInfo(id: number): ProgramInfo | undefined {
  checkPositive(id, 'id');
  return addon.programInfoById(id);
}

export interface RingBuffer {
  /** Records dropped because JavaScript was behind; what the kernel could not write is for the program to count. */
  readonly lost: bigint;
  close(): void;
}

/** Reads on a thread of its own and delivers in batches. Does not keep the process alive. */
export function openRingBuffer(
  map: BpfMap,
  onRecords: (records: Buffer[]) => void,
  options: { readonly queueLimit?: number } = {},
): RingBuffer {
  const { queueLimit = 65_536 } = options;
  checkFunction(onRecords, 'onRecords');
  checkPositive(queueLimit, 'queueLimit');
  const native = new addon.RingBuffer(map.fd, onRecords, queueLimit);
  return {
    get lost() {
      return native.lost();
    },
    close: () => native.close(),
  };
}

/** False where `path` is on a bpffs already. Creates the last folder of it. */
export function mountBpffs(path: string): boolean {
  checkText(path, 'path');
  return addon.mountBpffs(path);
}

export function isBpffs(path: string): boolean {
  checkText(path, 'path');
  return addon.isBpffs(path);
}

export function possibleCpus(): number {
  return addon.possibleCpus();
}
