/** Maps, programs and links: each owns one descriptor. */

import { checkBytes, checkFd, checkOneOf, checkPositive, checkText, checkUnsigned } from './addon.js';
import {
  addon,
  type MapShape,
  type PackedEntries,
  type ProgramInfo,
  type TestRunResult,
} from './bpf-addon.js';
import { isKernelError } from './errors.js';

const UPDATE_FLAGS = { any: 0, create: 1, replace: 2 } as const;
const CONTEXT_LIMIT = 4096;
/** BPF_MAP_TYPE_PERCPU_HASH, _PERCPU_ARRAY, _LRU_PERCPU_HASH. */
const PER_CPU: ReadonlySet<number> = new Set([5, 6, 10]);

/** Descriptors of objects that were dropped without `close()`. */
const leftovers = new FinalizationRegistry<number>((fd) => addon.closeFd(fd));

/** Reads what a fresh descriptor is; closes it if that fails. */
function described<T>(fd: number, describe: (fd: number) => T): T {
  try {
    return describe(fd);
  } catch (error) {
    addon.closeFd(fd);
    throw error;
  }
}

/** Owns one descriptor; `close()` may be called any number of times. */
class Handle {
  #fd: number | undefined;
  readonly #what: string;

  protected constructor(fd: number, what: string) {
    this.#fd = fd;
    this.#what = what;
    leftovers.register(this, fd, this);
  }

  /** @internal */
  get fd(): number {
    if (this.#fd === undefined) {
      throw new TypeError(`${this.#what} is closed`);
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
    const info = described(fd, addon.mapInfo);
    super(fd, `map ${info.name}`);
    this.name = info.name;
    this.type = info.type;
    this.id = info.id;
    this.keySize = info.keySize;
    this.valueSize = info.valueSize;
    this.maxEntries = info.maxEntries;
  }

  static openPinned(path: string): BpfMap {
    checkText(path, 'path');
    return new BpfMap(addon.openPinned(path, 'map'));
  }

  /** As the kernel knows it, types included. */
  shape(): MapShape {
    return addon.mapShape(this.fd);
  }

  /**
   * Adds entries whose key is not there yet, keys and values each packed one after the other. `refused`: those that
   * found the map full.
   */
  addMany(keys: Uint8Array, values: Uint8Array): { added: number; refused: number } {
    const count = keys.length / this.keySize;
    checkBytes(keys, 'keys', Math.floor(count) * this.keySize);
    checkBytes(values, 'values', count * this.valueSize);
    return addon.mapAddMany(this.fd, keys, values, this.keySize, this.valueSize);
  }

  /** Of a SOCKMAP with values of 8 bytes: the socket's cookie. */
  get(key: Uint8Array): Buffer | undefined {
    checkBytes(key, 'key', this.keySize);
    return addon.mapGet(this.fd, key, this.valueSize);
  }

  /** Code E2BIG where the map is full. */
  set(key: Uint8Array, value: Uint8Array, mode: keyof typeof UPDATE_FLAGS = 'any'): void {
    checkBytes(key, 'key', this.keySize);
    checkBytes(value, 'value', this.valueSize);
    checkOneOf(mode, 'mode', ['any', 'create', 'replace']);
    try {
      addon.mapSet(this.fd, key, value, UPDATE_FLAGS[mode]);
    } catch (error) {
      // So the kernel says it of a hash table; of what it is, only we know.
      if (isKernelError(error) && error.code === 'E2BIG') {
        error.message = `the kernel's table ${this.name} is full: it has room for ${this.maxEntries}`;
      }
      throw error;
    }
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
    return this.unpacked(this.packed());
  }

  /** What `packed` has read, taken apart. */
  unpacked({ count, keys, values }: PackedEntries): [Buffer, Buffer][] {
    return Array.from({ length: count }, (_, i) => [
      keys.subarray(i * this.keySize, (i + 1) * this.keySize),
      values.subarray(i * this.valueSize, (i + 1) * this.valueSize),
    ]);
  }

  /** As `entries`, keys and values each packed one after the other: for the many entries of a large map. */
  packed(): PackedEntries {
    return addon.mapEntries(this.fd, this.keySize, this.valueSize, this.maxEntries);
  }

  /**
   * The entries with the largest 64-bit number at `offset` of their value, the largest first. Read and chosen on a
   * thread of its own.
   */
  largest(offset: number, limit: number): Promise<PackedEntries> {
    checkUnsigned(offset, 'offset', this.valueSize - 8);
    checkPositive(limit, 'limit');
    return addon.mapLargest(this.fd, this.keySize, this.valueSize, this.maxEntries, offset, limit);
  }

  /** Of a per-CPU map of 64-bit numbers: its entries, each summed up over the CPUs. On a thread of its own. */
  sums(): Promise<PackedEntries> {
    if (!PER_CPU.has(this.type)) {
      throw new TypeError(`map ${this.name} must have values per CPU to be summed up`);
    }
    return addon.mapSums(this.fd, this.keySize, this.valueSize, this.maxEntries);
  }

  /** How many of the keys were there. */
  deleteMany(keys: readonly Uint8Array[]): number {
    keys.forEach((key, index) => {
      checkBytes(key, `keys[${index}]`, this.keySize);
    });
    return this.deletePacked(Buffer.concat(keys));
  }

  /** As `deleteMany`, with the keys packed one after the other. */
  deletePacked(keys: Uint8Array): number {
    checkBytes(keys, 'keys', Math.floor(keys.length / this.keySize) * this.keySize);
    return addon.mapDeleteMany(this.fd, keys, this.keySize);
  }
}

export class BpfProgram extends Handle implements ProgramInfo {
  readonly name: string;
  readonly type: number;
  readonly id: number;
  readonly tag: string;

  /** Takes the descriptor over. */
  constructor(fd: number) {
    const info = described(fd, addon.programInfo);
    super(fd, `program ${info.name}`);
    this.name = info.name;
    this.type = info.type;
    this.id = info.id;
    this.tag = info.tag;
  }

  static openPinned(path: string): BpfProgram {
    checkText(path, 'path');
    return new BpfProgram(addon.openPinned(path, 'prog'));
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

  /**
   * Runs an XDP program on a live frame: what it passes goes on into the stack of the current network namespace, as if
   * `ifindex` had just received it. BPF_F_TEST_XDP_LIVE_FRAMES, Linux 5.18; KernelError EINVAL before that.
   */
  inject(data: Uint8Array, ifindex: number): void {
    checkBytes(data, 'data');
    checkPositive(ifindex, 'ifindex');
    addon.inject(this.fd, data, ifindex);
  }
}

export class BpfLink extends Handle {
  readonly id: number;

  /** Takes the descriptor over. */
  constructor(fd: number) {
    const { id } = described(fd, addon.linkInfo);
    super(fd, `link ${id}`);
    this.id = id;
  }

  static openPinned(path: string): BpfLink {
    checkText(path, 'path');
    return new BpfLink(addon.openPinned(path, 'link'));
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

/** TypeError where `value` is no BpfProgram. */
export function checkProgram(program: unknown): asserts program is BpfProgram {
  if (!(program instanceof BpfProgram)) {
    throw new TypeError('program must be a BpfProgram');
  }
}

/** TypeError where `value` is no BpfMap. */
export function checkMap(map: unknown): asserts map is BpfMap {
  if (!(map instanceof BpfMap)) {
    throw new TypeError('map must be a BpfMap');
  }
}
