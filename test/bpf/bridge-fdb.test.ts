/** What `renew` does to the entries of a bridge, by the kernel's own list. */

import { afterEach, beforeEach, expect, it } from 'vitest';
import { BridgeFdb } from '../../src/native/bridge-fdb.js';
import { interfaceIndex } from '../../src/native/namespaces.js';
import { waitFor } from '../lab/exec.js';
import { patient } from '../lab/patience.js';
import { Cleanup, Netns } from '../unit/native-lab.js';

const AGEING_S = patient(2);
const MOST = 16;

const cleanup = new Cleanup();
let netns: Netns;
let fdb: BridgeFdb;
let pod: number;
let other: number;

beforeEach(async () => {
  netns = cleanup.owned(new Netns());
  fdb = cleanup.owned(netns.run(() => new BridgeFdb()));
  netns.exec('sysctl', '-qw', 'net.ipv6.conf.default.disable_ipv6=1'); // interfaces that say nothing by themselves
  // Where bridges know VLANs each entry would stand there twice.
  netns.ip(`link add br0 type bridge ageing_time ${AGEING_S * 100} vlan_default_pvid 0`);
  [pod, other] = [netns.addVeth('pod'), netns.addVeth('other')];
  for (const name of ['pod', 'other']) {
    netns.ip(`link set ${name} master br0`);
    netns.ip(`link set ${name}-peer up`);
    netns.ip(`link set ${name} up`);
  }
  netns.ip('link set br0 up');
  await waitFor('both ports to forward', () => {
    const states = netns.exec('bridge', 'link').match(/state forwarding/g);
    return states?.length === 2;
  });
});

afterEach(() => cleanup.run());

function mac(last: number): string {
  return `02:00:00:00:00:${last.toString(16).padStart(2, '0')}`;
}

function put(last: number, port: string, ...words: readonly string[]): void {
  netns.exec('bridge', 'fdb', 'add', mac(last), 'dev', port, 'master', ...words);
}

function entries(): string[] {
  return netns
    .exec('bridge', 'fdb', 'show', 'br', 'br0')
    .split('\n')
    .map((line) => line.trim())
    .filter((line) => line.startsWith('02:00:00:00:00:'))
    .sort();
}

async function untilGone(last: number, meanwhile: () => void): Promise<void> {
  await waitFor(
    `the bridge to forget ${mac(last)}`,
    () => {
      meanwhile();
      return !entries().some((entry) => entry.startsWith(mac(last)));
    },
    10 * AGEING_S * 1_000,
  );
}

it('keeps what is renewed for longer than the ageing time; what is at another port goes', async () => {
  put(1, 'pod', 'dynamic');
  put(2, 'other', 'dynamic');
  await untilGone(2, () => expect(fdb.renew(pod, MOST)).toBe(1));
  expect(entries()).toEqual([`${mac(1)} dev pod master br0`]);
});

it('adds nothing at a port of which nothing is known', () => {
  put(1, 'other', 'dynamic');
  expect(fdb.renew(pod, MOST)).toBe(0);
  expect(entries()).toEqual([`${mac(1)} dev other master br0`]);
});

it('leaves alone what somebody has put there for good, and what another program has learnt', async () => {
  put(1, 'pod', 'dynamic');
  put(2, 'pod', 'static');
  put(3, 'pod', 'permanent');
  put(4, 'pod', 'dynamic', 'extern_learn');
  const before = entries();
  expect(before).toHaveLength(4);
  expect(fdb.renew(pod, MOST)).toBe(1);
  expect(entries()).toEqual(before);
});

it('renews no more than it is told to', () => {
  for (let last = 1; last <= 40; last++) {
    put(last, 'pod', 'dynamic');
  }
  expect(fdb.renew(pod, MOST)).toBe(MOST);
  expect(entries()).toHaveLength(40);
});

it('finds nothing at a port that has left the bridge, and names the errno of one that has gone', () => {
  put(1, 'pod', 'dynamic');
  netns.ip('link set pod nomaster');
  expect(fdb.renew(pod, MOST)).toBe(0);
  netns.ip('link del other');
  expect(netns.run(() => interfaceIndex('other'))).toBeUndefined();
  expect(fdb.renew(other, MOST)).toBe(0);
});
