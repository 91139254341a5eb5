/** Which endpoint an address leads to, for getsockopt(2): the maps that the kernel program reads. */

import { afterEach, beforeEach, expect, it } from 'vitest';
import { type EndpointIdentity, Identities } from '../../src/datapath/identities.js';
import type { Layouts } from '../../src/datapath/layouts.js';
import type { BpfMap } from '../../src/native/bpf.js';
import { ipToBytes } from '../../src/net/ip.js';
import { Cleanup, temporaryBpffs } from '../unit/native-lab.js';
import { openIn } from './datapath-lab.js';

const cleanup = new Cleanup();
let maps: { readonly identities: BpfMap; readonly addresses: BpfMap };
let layouts: Layouts;
let identities: Identities;

const [FIRST, SECOND] = ['10.66.0.3', '10.67.0.3'];

beforeEach(() => {
  const programs = openIn(cleanup, temporaryBpffs(cleanup));
  maps = programs.maps;
  layouts = programs.layouts;
  identities = new Identities(maps, layouts, () => true);
});

afterEach(() => cleanup.run());

function named(podName: string): EndpointIdentity {
  return {
    uid: `uid-${podName}`,
    generation: 1,
    namespace: 'default',
    podName,
    serviceAccount: 'web',
    app: 'web',
    runtime: 'runc',
    spiffeId: `spiffe://cluster.local/ns/default/sa/${podName}`,
  };
}

const keyOf = (ip: string) => Buffer.from(ipToBytes(ip)).toString('latin1');
const leadsTo = (ip: string) => maps.addresses.get(Buffer.from(ipToBytes(ip)))?.readUInt32LE(0);

it('an interface that goes takes its own addresses alone, and nobody’s name', () => {
  identities.describe(1, named('a'), [FIRST, SECOND]);
  expect([leadsTo(FIRST), leadsTo(SECOND)]).toEqual([1, 1]);
  identities.leave(1, [keyOf(SECOND)]);
  expect([leadsTo(FIRST), leadsTo(SECOND)]).toEqual([1, undefined]);
  expect(maps.identities.entries()).toHaveLength(1);
});

it('an address that two claim leads to neither, until one of them lets go', () => {
  identities.describe(1, named('a'), [FIRST]);
  identities.describe(2, named('b'), [FIRST, SECOND]);
  expect([leadsTo(FIRST), leadsTo(SECOND)]).toEqual([undefined, 2]);
  identities.leave(1, [keyOf(FIRST)]);
  expect(leadsTo(FIRST)).toBe(2);
});

it('what is forgotten is gone from both maps, and what is taken away comes back', () => {
  identities.describe(1, named('a'), [FIRST]);
  identities.describe(2, named('b'), [SECOND]);
  identities.forget(1);
  expect([leadsTo(FIRST), maps.identities.entries().length]).toEqual([undefined, 1]);
  maps.addresses.delete(Buffer.from(ipToBytes(SECOND)));
  expect(identities.ensure()).toContain('an address of endpoint 2');
  expect(leadsTo(SECOND)).toBe(2);
});

it('where the table is full, what found no room is not wanted for ever', () => {
  const { addresses } = maps;
  let room = 3;
  const small = Object.assign(Object.create(addresses) as BpfMap, {
    set: (key: Buffer, value: Buffer) => {
      if (addresses.get(key) === undefined && addresses.entries().length >= room) {
        throw new Error('the table is full');
      }
      addresses.set(key, value);
    },
    get: (key: Buffer) => addresses.get(key),
    delete: (key: Buffer) => addresses.delete(key),
    packed: () => addresses.packed(),
  });
  identities = new Identities({ ...maps, addresses: small }, layouts, () => true);
  identities.describe(1, named('a'), [FIRST]);
  const many = [SECOND, '10.67.0.4', '10.67.0.5'];
  expect(() => identities.describe(2, named('b'), many)).toThrow('full');
  expect(identities.ensure()).toEqual([]);
  identities.describe(2, named('b'), [SECOND]);
  expect(identities.ensure()).toEqual([]);
  expect(addresses.entries()).toHaveLength(2);
  room = 4;
  identities.describe(2, named('b'), many);
  expect(many.map(leadsTo)).toEqual([2, 2, 2]);
});
