/** The kernel-boundary structs of bpf/include/layout.h, read from the loaded object's BTF: never written down twice. */

import type { BpfObject, StructField, StructLayout } from '../native/bpf.js';
import { DatapathError } from './errors.js';

export type FieldValue = number | bigint | Uint8Array;

/** Encodes and decodes one struct by field name, little-endian as on every supported machine. */
export class Struct {
  readonly size: number;
  readonly #layout: StructLayout;

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

export interface Layouts {
  readonly endpoint: Struct;
  readonly sourceKey: Struct;
  readonly workload: Struct;
  readonly flowKey: Struct;
  readonly flow: Struct;
  readonly event: Struct;
  readonly canaryKey: Struct;
  readonly canary: Struct;
  /** `enum verdict`, index to name without its prefix. */
  readonly verdicts: readonly string[];
  readonly flags: { readonly failureOpen: number; readonly bridged: number };
}

function enumValue(values: ReadonlyMap<string, number>, name: string): number {
  const value = values.get(name);
  if (value === undefined) {
    throw new DatapathError('LAYOUT_MISMATCH', `the BPF objects know no ${name}: build again`);
  }
  return value;
}

export function readLayouts(object: BpfObject): Layouts {
  const struct = (name: string, fields: readonly string[]) => new Struct(object.layout(name), fields);
  const verdictValues = object.enumValues('verdict');
  const verdicts: string[] = [];
  for (const [name, value] of verdictValues) {
    if (name !== 'VERDICT_COUNT') {
      verdicts[value] = name.replace(/^VERDICT_/, '');
    }
  }
  const flags = object.enumValues('endpoint_flag');
  return {
    endpoint: struct('endpoint', ['id', 'generation', 'instance', 'flags', 'bridge_ifindex']),
    sourceKey: struct('source_key', ['ifindex', 'address']),
    workload: struct('workload', ['uid', 'generation', 'ifindex']),
    flowKey: struct('flow_key', ['src', 'dst', 'sport', 'dport', 'protocol']),
    flow: struct('flow', ['started_ns', 'endpoint', 'generation', 'ifindex', 'instance', 'direction']),
    event: struct('event', [
      'time_ns',
      'key',
      'endpoint',
      'generation',
      'ifindex',
      'instance',
      'direction',
      'verdict',
    ]),
    canaryKey: struct('canary_key', ['ifindex', 'family']),
    canary: struct('canary', ['nonce', 'answered', 'endpoint', 'generation', 'instance', 'listening']),
    verdicts,
    flags: {
      failureOpen: enumValue(flags, 'ENDPOINT_FAILURE_OPEN'),
      bridged: enumValue(flags, 'ENDPOINT_BRIDGED'),
    },
  };
}

export function u32(value: number): Buffer {
  const buffer = Buffer.alloc(4);
  buffer.writeUInt32LE(value);
  return buffer;
}
