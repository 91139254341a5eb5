/** Carrying the entries of a map over into one of another layout, field by field, by name. */

import type { BpfMap, FlatLayout, MapShape } from '../native/bpf.js';
import { DatapathError } from './errors.js';

const SOCKMAP = 15;

interface Step {
  readonly from: number;
  readonly to: number;
  readonly length: number;
  /** Bytes of the old field that the new one has no room for. */
  readonly cut: number;
}

export interface Copied {
  /** Entries that were not there yet. */
  readonly added: number;
  /** Entries with a value that does not fit into the new field of its name. */
  readonly unfit: number;
}

/** Whether programs of both sides can work on one and the same map. */
export function sameShape(old: MapShape, fresh: MapShape): boolean {
  const sizes = ['type', 'flags', 'keySize', 'valueSize', 'maxEntries'] as const;
  if (!sizes.every((what) => old[what] === fresh[what])) {
    return false;
  }
  return old.type === SOCKMAP || (sameLayout(old.key, fresh.key) && sameLayout(old.value, fresh.value));
}

function sameLayout(a: FlatLayout | undefined, b: FlatLayout | undefined): boolean {
  return (
    a !== undefined &&
    b !== undefined &&
    a.size === b.size &&
    a.fields.length === b.fields.length &&
    a.fields.every(({ name, offset, size }, index) => {
      const other = b.fields[index];
      return other?.name === name && other.offset === offset && other.size === size;
    })
  );
}

/** New fields are zero, fields that are no more are dropped. Little-endian numbers grow and shrink at their end. */
function stepsBetween(from: FlatLayout, to: FlatLayout): Step[] {
  const old = new Map(from.fields.map((field) => [field.name, field]));
  const steps: Step[] = [];
  for (const field of to.fields) {
    const before = old.get(field.name);
    if (before === undefined) {
      continue;
    }
    const length = Math.min(before.size, field.size);
    const last = steps.at(-1);
    // Neighbours that stay neighbours are one step: there may be hundreds of thousands of entries.
    if (
      last?.cut === 0 &&
      last.from + last.length === before.offset &&
      last.to + last.length === field.offset
    ) {
      steps.pop();
      steps.push({ ...last, length: last.length + length, cut: before.size - length });
    } else {
      steps.push({ from: before.offset, to: field.offset, length, cut: before.size - length });
    }
  }
  return steps;
}

/** From and to these offsets. False where something would be lost. */
function carry(steps: readonly Step[], from: Buffer, fromBase: number, to: Buffer, toBase: number): boolean {
  for (const step of steps) {
    const end = fromBase + step.from + step.length;
    from.copy(to, toBase + step.to, fromBase + step.from, end);
    for (let at = end; at < end + step.cut; at++) {
      if (from[at] !== 0) {
        return false;
      }
    }
  }
  return true;
}

/**
 * Adds every entry of `old` whose key `fresh` does not have. DatapathError LAYOUT_MISMATCH where the kernel keeps no
 * types for one of them, or where `fresh` is full.
 */
export function copyByName(old: BpfMap, fresh: BpfMap): Copied {
  const [before, after] = [old.shape(), fresh.shape()];
  if (!before.key || !before.value || !after.key || !after.value) {
    throw new DatapathError(
      'LAYOUT_MISMATCH',
      `the pinned map ${old.name} has no types: its entries cannot be taken over; run "nodesentry cleanup" first`,
    );
  }
  const keySteps = stepsBetween(before.key, after.key);
  const valueSteps = stepsBetween(before.value, after.value);
  const { count: total, keys: oldKeys, values: oldValues } = old.packed();
  const keys = Buffer.alloc(total * fresh.keySize);
  const values = Buffer.alloc(total * fresh.valueSize);
  let count = 0;
  for (let index = 0; index < total; index++) {
    // Of one that does not fit nothing stays behind: the next entry has the same fields.
    if (
      carry(keySteps, oldKeys, index * old.keySize, keys, count * fresh.keySize) &&
      carry(valueSteps, oldValues, index * old.valueSize, values, count * fresh.valueSize)
    ) {
      count += 1;
    }
  }
  const { added, refused } = fresh.addMany(
    keys.subarray(0, count * fresh.keySize),
    values.subarray(0, count * fresh.valueSize),
  );
  if (refused > 0) {
    throw new DatapathError(
      'LAYOUT_MISMATCH',
      `${refused} of ${total} entries of the pinned map ${old.name} find no room in the ${fresh.maxEntries} of this agent's: run "nodesentry cleanup" first`,
    );
  }
  return { added, unfit: total - count };
}
