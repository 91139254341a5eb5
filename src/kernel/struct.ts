/** Structs that cross the kernel boundary, encoded and decoded by the layout that an object's BTF gives. */

import type { StructField, StructLayout } from '../native/bpf.js';
import { DatapathError } from './errors.js';

export type FieldValue = number | bigint | Uint8Array;

/** Encodes and decodes one struct by field name, little-endian as on every supported machine. */
export class Struct {
  readonly size: number;
  readonly #layout: StructLayout;

  /** DatapathError LAYOUT_MISMATCH where the struct lacks one of the `expected` fields. */
  constructor(layout: StructLayout, expected: readonly string[]) {
    const missing = expected.filter((field) => !layout.fields.has(field));
    if (missing.length > 0) {
      throw new DatapathError(
        'LAYOUT_MISMATCH',
        `struct ${layout.name} of the BPF objects has no ${missing.join(', ')}: they are of another version than this agent; build again`,
      );
    }
    this.#layout = layout;
    this.size = layout.size;
  }

  encode(values: Readonly<Record<string, FieldValue>>): Buffer {
    const buffer = Buffer.alloc(this.size);
    for (const [name, value] of Object.entries(values)) {
      const { offset, size } = this.#field(name);
      if (value instanceof Uint8Array) {
        if (value.length > size) {
          throw new RangeError(`${this.#layout.name}.${name}: ${value.length} bytes do not fit into ${size}`);
        }
        buffer.set(value, offset);
      } else if (size === 8) {
        buffer.writeBigUInt64LE(BigInt(value), offset);
      } else {
        buffer.writeUIntLE(Number(value), offset, size);
      }
    }
    return buffer;
  }

  number(buffer: Buffer, name: string, base = 0): number {
    const { offset, size } = this.#field(name);
    return size === 8
      ? Number(buffer.readBigUInt64LE(base + offset))
      : buffer.readUIntLE(base + offset, size);
  }

  offsetOf(name: string): number {
    return this.#field(name).offset;
  }

  /** Bytes. */
  sizeOf(name: string): number {
    return this.#field(name).size;
  }

  bytes(buffer: Buffer, name: string): Buffer {
    const { offset, size } = this.#field(name);
    return buffer.subarray(offset, offset + size);
  }

  #field(name: string): StructField {
    const field = this.#layout.fields.get(name);
    if (field === undefined) {
      throw new DatapathError('LAYOUT_MISMATCH', `struct ${this.#layout.name} has no field ${name}`);
    }
    return field;
  }
}

/** DatapathError LAYOUT_MISMATCH where the enum has no such name. */
export function enumValue(values: ReadonlyMap<string, number>, name: string): number {
  const value = values.get(name);
  if (value === undefined) {
    throw new DatapathError('LAYOUT_MISMATCH', `the BPF objects know no ${name}: build again`);
  }
  return value;
}

/** A map key or value of 32 bits. */
export function u32(value: number): Buffer {
  const buffer = Buffer.alloc(4);
  buffer.writeUInt32LE(value);
  return buffer;
}

export function u64(value: number | bigint): Buffer {
  const buffer = Buffer.alloc(8);
  buffer.writeBigUInt64LE(BigInt(value));
  return buffer;
}
