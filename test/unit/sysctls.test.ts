/**
 * Sysctls of interfaces: what is changed, recorded and put back. /proc/sys is a folder of the test's own; the interfaces
 * are real ones in a network namespace, for the kernel tells which of them are still there.
 */

import { existsSync, mkdirSync, readFileSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { afterEach, beforeEach, describe, expect, test } from 'vitest';
import { InterfaceSysctls } from '../../src/kernel/sysctls.js';
import { Cleanup, Netns, temporaryFolder } from './native-lab.js';

const cleanup = new Cleanup();
let netns: Netns;
let folder: string;
let record: string;

beforeEach(() => {
  netns = cleanup.owned(new Netns());
  folder = temporaryFolder(cleanup);
  record = join(folder, 'run/sysctls.json');
  conf('all');
});
afterEach(() => cleanup.run());

/** A new one has read nothing yet. */
const sysctls = () => new InterfaceSysctls(join(folder, 'run'), folder);
const pathOf = (name: string, sysctl: string) => join(folder, 'net/ipv4/conf', name, sysctl);
const acceptLocal = (name: string) => readFileSync(pathOf(name, 'accept_local'), 'utf8').trim();
const recorded = (): unknown => JSON.parse(readFileSync(record, 'utf8'));

function conf(name: string, values: { src_valid_mark?: 0 | 1; accept_local?: 0 | 1 } = {}): void {
  mkdirSync(join(folder, 'net/ipv4/conf', name), { recursive: true });
  for (const [sysctl, value] of Object.entries({ src_valid_mark: 0, accept_local: 0, ...values })) {
    writeFileSync(pathOf(name, sysctl), `${value}\n`);
  }
}

/** A veth in the namespace, with sysctls that ask for nothing. Up: dev_mcast has it without IPv6 too. */
function veth(name: string): number {
  const ifindex = netns.addVeth(name);
  netns.ip(`link set ${name} up`);
  conf(name);
  return ifindex;
}

const ensure = (name: string, ifindex: number) => sysctls().ensure(name, ifindex);
const restore = (ifindex?: number) => netns.run(() => sysctls().restore(ifindex));

describe('accept_local of an interface', () => {
  test.each([
    { all: {}, own: {}, becomes: '0' },
    { all: { src_valid_mark: 1 }, own: {}, becomes: '1' },
    { all: {}, own: { src_valid_mark: 1 }, becomes: '1' },
    { all: { src_valid_mark: 1, accept_local: 1 }, own: {}, becomes: '0' },
    { all: { accept_local: 1 }, own: { src_valid_mark: 1 }, becomes: '0' },
  ] as const)('becomes $becomes where all has $all and the interface $own', ({ all, own, becomes }) => {
    conf('all', all);
    conf('veth0', own);
    expect(ensure('veth0', 10)).toBe(becomes === '1');
    expect(acceptLocal('veth0')).toBe(becomes);
    expect(existsSync(record)).toBe(becomes === '1');
  });

  test('that somebody else has set already is left to them', () => {
    conf('veth0', { src_valid_mark: 1, accept_local: 1 });
    expect(ensure('veth0', 10)).toBe(false);
    expect(existsSync(record)).toBe(false);
  });

  test('is set once, and again where somebody takes it away', () => {
    conf('veth0', { src_valid_mark: 1 });
    const kept = sysctls();
    expect(kept.ensure('veth0', 10)).toBe(true);
    expect(kept.ensure('veth0', 10)).toBe(false);
    conf('veth0', { src_valid_mark: 1 });
    expect(kept.ensure('veth0', 10)).toBe(true);
    expect(acceptLocal('veth0')).toBe('1');
    expect(recorded()).toHaveLength(1);
  });

  test('is recorded before it is set: where it cannot be recorded it is not set', () => {
    conf('veth0', { src_valid_mark: 1 });
    writeFileSync(join(folder, 'run'), 'a file where the folder should be');
    expect(() => ensure('veth0', 10)).toThrow('EEXIST');
    expect(acceptLocal('veth0')).toBe('0');
  });

  test('is recorded with what it was', () => {
    conf('veth0', { src_valid_mark: 1 });
    ensure('veth0', 10);
    expect(recorded()).toEqual([{ interface: 'veth0', ifindex: 10, name: 'accept_local', before: '0' }]);
  });

  test('is not looked for where the interface has just gone', () => {
    conf('all', { src_valid_mark: 1 });
    expect(ensure('veth0', 10)).toBe(false);
    expect(existsSync(record)).toBe(false);
  });
});

describe('what was changed', () => {
  let first: number;
  let second: number;
  beforeEach(() => {
    [first, second] = [veth('veth0'), veth('veth1')];
    conf('all', { src_valid_mark: 1 });
    ensure('veth0', first);
    ensure('veth1', second);
  });
  const values = () => [acceptLocal('veth0'), acceptLocal('veth1')];

  test('is put back at every interface, by another agent too', () => {
    expect(values()).toEqual(['1', '1']);
    expect(restore()).toEqual([
      'sysctl net.ipv4.conf.veth0.accept_local',
      'sysctl net.ipv4.conf.veth1.accept_local',
    ]);
    expect(values()).toEqual(['0', '0']);
    expect(existsSync(record)).toBe(false);
    expect(restore()).toEqual([]);
  });

  test('is put back at one interface, and the others keep what they need', () => {
    expect(restore(first)).toEqual(['sysctl net.ipv4.conf.veth0.accept_local']);
    expect(values()).toEqual(['0', '1']);
    expect(recorded()).toEqual([expect.objectContaining({ ifindex: second })]);
  });

  test('at an interface that has gone is dropped, and nothing is written', () => {
    netns.ip('link del veth0');
    expect(restore(first)).toEqual([]);
    expect(values()).toEqual(['1', '1']);
    expect(recorded()).toEqual([expect.objectContaining({ ifindex: second })]);
  });

  test('is not put back at another interface that has the name by now', () => {
    netns.ip('link del veth0');
    const anew = veth('veth0');
    conf('veth0', { accept_local: 1 });
    expect(anew).not.toBe(first);
    expect(restore()).toEqual(['sysctl net.ipv4.conf.veth1.accept_local']);
    expect(values()).toEqual(['1', '0']);
    expect(existsSync(record)).toBe(false);
  });

  test('is set again where the interface is needed again', () => {
    restore(first);
    expect(ensure('veth0', first)).toBe(true);
    expect(values()).toEqual(['1', '1']);
  });
});

test('what was read of an interface is forgotten with it: another may have its number', () => {
  conf('veth0', { src_valid_mark: 0 });
  const kept = sysctls();
  expect(kept.ensure('veth0', 10)).toBe(false);
  kept.restore(10);
  conf('veth0', { src_valid_mark: 1 });
  expect(kept.ensure('veth0', 10)).toBe(true);
});
