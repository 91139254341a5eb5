/** A compiled BPF object file, and the layouts that its BTF describes. */

import { checkBytes, checkText } from './addon.js';
import { addon, type MapShape, type NativeObject } from './bpf-addon.js';
import { BpfMap, BpfProgram, checkMap } from './bpf-handles.js';

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
    checkMap(map);
    this.#native.reuseMap(name, map.fd);
  }

  /** KernelError with the verifier's `log` where the kernel refuses. */
  load(): void {
    this.#native.load();
  }

  /** As declared; needs no `load`. RangeError where the object has no such map. */
  mapShape(name: string): MapShape {
    checkText(name, 'name');
    return this.#native.mapShape(name);
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
