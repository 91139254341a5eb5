import { afterEach, beforeEach, expect, it } from 'vitest';
import { InstanceSlots } from '../../src/datapath/instance-slots.js';
import type { DatapathPrograms } from '../../src/datapath/manifest.js';
import { u32 } from '../../src/kernel/struct.js';
import { Cleanup, temporaryBpffs } from '../unit/native-lab.js';
import { openIn } from './datapath-lab.js';

const cleanup = new Cleanup();
let datapath: DatapathPrograms;
/** Numbers that endpoints and flows refer to. */
let referred: Set<number>;

beforeEach(() => {
  datapath = openIn(cleanup, temporaryBpffs(cleanup));
  referred = new Set();
});

afterEach(() => cleanup.run());

/** As the next agent finds them. */
function restarted(...names: string[]): InstanceSlots {
  const slots = new InstanceSlots({
    instances: datapath.maps.instances,
    layouts: datapath.layouts,
    referred: () => referred,
  });
  slots.assign(names);
  return slots;
}

const many = (count: number, prefix = 'i') => Array.from({ length: count }, (_, n) => `${prefix}${n}`);

it('the first agent numbers instances as they stand in the configuration, which is what older agents did', () => {
  referred = new Set([0, 1]); // endpoints that an agent without a table of names wrote
  const slots = restarted('payments', 'default');
  expect(['payments', 'default'].map((name) => slots.numberOf(name))).toEqual([0, 1]);
});

it('an instance keeps its number wherever it comes to stand in the list', () => {
  restarted('default', 'payments');
  const slots = restarted('shop', 'payments', 'default');
  expect(['default', 'payments', 'shop'].map((name) => slots.numberOf(name))).toEqual([0, 1, 2]);
});

it('an instance that was renamed gets a number of its own, and the old name is still told', () => {
  restarted('default');
  const slots = restarted('main');
  expect(slots.numberOf('main')).toBe(1);
  expect(slots.nameOf(0)).toBe('default');
  expect(restarted('default').numberOf('default')).toBe(0);
});

it('at run time too: adding and removing moves nobody', () => {
  const slots = restarted('a', 'b');
  slots.assign(['c', 'b']);
  expect(['a', 'b', 'c'].map((name) => slots.numberOf(name))).toEqual([0, 1, 2]);
});

it('a number that something refers to is not given to another name, though nobody knows whose it was', () => {
  restarted('a');
  referred = new Set([1]);
  expect(restarted('a', 'b').numberOf('b')).toBe(2);
});

it('where all numbers are taken, those that nothing refers to are given anew', () => {
  restarted(...many(256));
  referred = new Set([0, 1]);
  const slots = restarted('i0', 'fresh', 'fresher');
  expect([slots.numberOf('fresh'), slots.numberOf('fresher')]).toEqual([2, 3]);
  expect([slots.nameOf(1), slots.nameOf(4)]).toEqual(['i1', '#4']);
});

it('and where something refers to every one of them, the agent says so', () => {
  restarted(...many(256));
  referred = new Set(many(256).keys());
  expect(() => restarted('fresh')).toThrow(
    expect.objectContaining({
      code: 'LISTENER_LIMIT',
      message: 'instances: all 256 numbers are taken by instances that pods or flows still refer to',
    }),
  );
});

it('refuses more instances than there are numbers', () => {
  expect(() => restarted(...many(257))).toThrow(
    expect.objectContaining({
      code: 'LISTENER_LIMIT',
      message: 'instances: at most 256 are possible, 257 are configured',
    }),
  );
  expect(() => restarted(...many(256))).not.toThrow();
});

it('a row that somebody has taken away or changed is written again', () => {
  const slots = restarted('a', 'b', 'c');
  expect(slots.ensure()).toEqual([]);
  const { instances } = datapath.maps;
  instances.delete(u32(1));
  instances.set(u32(2), datapath.layouts.instance.encode({ name: Buffer.from('x') }));
  expect(slots.ensure()).toEqual(['the number of instance b', 'the number of instance c']);
  expect(restarted('c', 'b', 'a').numberOf('c')).toBe(2);
});

it('a name of 64 bytes is kept whole, a longer one is refused', () => {
  restarted('x'.repeat(64));
  expect(restarted('x'.repeat(64)).nameOf(0)).toBe('x'.repeat(64));
  expect(() => restarted('x'.repeat(65))).toThrow(RangeError);
});
