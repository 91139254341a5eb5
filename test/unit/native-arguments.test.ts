/** Wrong arguments never reach the kernel: a TypeError names each. */
import { afterAll, beforeAll, expect, it } from 'vitest';
import * as announceDoor from '../../src/native/announce-door.js';
import * as bpf from '../../src/native/bpf.js';
import * as descriptors from '../../src/native/descriptors.js';
import * as linkEvents from '../../src/native/link-events.js';
import * as locks from '../../src/native/locks.js';
import * as namespaces from '../../src/native/namespaces.js';
import * as sockets from '../../src/native/sockets.js';
import { loadProbe, u32 } from './native-lab.js';

let object: bpf.BpfObject;
let numbers: bpf.BpfMap;
let stamp: bpf.BpfProgram;

beforeAll(() => {
  object = loadProbe();
  numbers = object.map('numbers');
  stamp = object.program('stamp');
});

afterAll(() => {
  stamp.close();
  numbers.close();
  object.close();
});

/** What a caller without types could pass. */
const wrong = <T>(value: unknown) => value as T;
const place = { priority: 1, handle: 1 };

const cases: readonly (readonly [string, string, () => unknown])[] = [
  ['BpfObject.open', 'path must be a non-empty string', () => bpf.BpfObject.open('')],
  ['setReadOnlyData', 'variable must be', () => object.setReadOnlyData(wrong(1), u32(1))],
  ['setReadOnlyData', 'value must be a Uint8Array', () => object.setReadOnlyData('answer', wrong('x'))],
  ['reuseMap', 'map must be a BpfMap', () => object.reuseMap('numbers', wrong({}))],
  ['map', 'name must be', () => object.map(wrong(undefined))],
  ['program', 'name must be', () => object.program('a\0b')],
  ['layout', 'struct must be', () => object.layout('')],
  ['get', 'key must have 4 bytes, it has 2', () => numbers.get(Buffer.alloc(2))],
  ['set', 'value must have 12 bytes, it has 1', () => numbers.set(u32(1), Buffer.alloc(1))],
  ['set', 'mode must be one of', () => numbers.set(u32(1), Buffer.alloc(12), wrong('upsert'))],
  ['delete', 'key must be a Uint8Array', () => numbers.delete(wrong([1]))],
  ['deleteMany', 'keys[1] must have 4 bytes', () => numbers.deleteMany([u32(1), Buffer.alloc(1)])],
  ['deletePacked', 'keys must have 4 bytes, it has 6', () => numbers.deletePacked(Buffer.alloc(6))],
  ['largest', 'offset must be a non-negative integer of at most 4', () => numbers.largest(5, 1)],
  ['largest', 'limit must be a positive integer', () => numbers.largest(0, 0)],
  ['sums', 'map numbers must have values per CPU', () => numbers.sums()],
  ['setSocket', 'fd must be a non-negative integer', () => numbers.setSocket(u32(1), -1)],
  ['setSocket', 'map numbers must have values of 8 bytes', () => numbers.setSocket(u32(1), 0)],
  ['pin', 'path must be', () => numbers.pin('')],
  ['testRun', 'data must be a Uint8Array', () => stamp.testRun({ data: wrong('x') })],
  ['testRun', 'repeat must be a positive integer', () => stamp.testRun({ data: u32(1), repeat: 0 })],
  [
    'testRun',
    'context must have at most',
    () => stamp.testRun({ data: u32(1), context: Buffer.alloc(5000) }),
  ],
  ['attachTcx', 'program must be a BpfProgram', () => bpf.attachTcx(wrong(numbers), 1, 'ingress')],
  ['attachTcx', 'ifindex must be a positive integer', () => bpf.attachTcx(stamp, 0, 'ingress')],
  ['queryTcx', 'direction must be one of ingress, egress', () => bpf.queryTcx(1, wrong('in'))],
  [
    'attachClsact',
    'priority must be',
    () => bpf.attachClsact(stamp, 1, 'ingress', { priority: 65_536, handle: 1 }),
  ],
  ['queryClsact', 'handle must be', () => bpf.queryClsact(1, 'ingress', { priority: 1, handle: 0 })],
  ['detachClsact', 'ifindex must be', () => bpf.detachClsact(-1, 'ingress', place)],
  ['attachSkLookup', 'netnsFd must be', () => bpf.attachSkLookup(stamp, wrong('3'))],
  ['programInfo', 'id must be a positive integer', () => bpf.programInfo(1.5)],
  ['openRingBuffer', 'map must be a BpfMap', () => bpf.openRingBuffer(wrong(undefined), () => {})],
  ['openRingBuffer', 'onRecords must be a function', () => bpf.openRingBuffer(numbers, wrong(1))],
  ['openRingBuffer', 'periodMs must be', () => bpf.openRingBuffer(numbers, () => {}, { periodMs: 0 })],
  ['openRingBuffer', 'queueLimit must be', () => bpf.openRingBuffer(numbers, () => {}, { queueLimit: 0 })],
  ['mountBpffs', 'path must be', () => bpf.mountBpffs('')],
  ['openNamespace', 'path must be', () => namespaces.openNamespace(wrong(3))],
  ['withNetns', 'fd must be a non-negative integer', () => namespaces.withNetns(wrong('0'), () => 1)],
  ['withNetns', 'body must be a function', () => namespaces.withNetns(0, wrong('x'))],
  ['netnsIdentity', 'fd must be', () => namespaces.netnsIdentity(-1)],
  ['socketOwners', 'inodes[1] must be', () => sockets.socketOwners([1, -1])],
  ['tryLock', 'fd must be', () => locks.tryLock(-1)],
  ['closeFd', 'fd must be', () => descriptors.closeFd(Number.NaN)],
  ['pidfdOpen', 'pid must be a positive integer', () => sockets.pidfdOpen(0)],
  ['pidfdGetfd', 'pidfd must be', () => sockets.pidfdGetfd(-1, 0)],
  ['setTransparent', 'fd must be', () => sockets.setTransparent(2 ** 31)],
  ['socketFrom', 'source must be an IP address', () => sockets.socketFrom('localhost')],
  ['socketFrom', 'source must be an IP address', () => sockets.socketFrom(wrong(undefined))],
  ['openListener', 'host must be an IP address', () => sockets.openListener('localhost', 1)],
  ['openListener', 'port must be', () => sockets.openListener('::1', 65_536)],
  ['openListener', 'backlog must be', () => sockets.openListener('::1', 1, { backlog: 0 })],
  ['socketInfo', 'fd must be', () => sockets.socketInfo(wrong(null))],
  ['peerCredentials', 'fd must be', () => sockets.peerCredentials(wrong({}))],
  ['interfaceIndex', 'name must be', () => namespaces.interfaceIndex('')],
  ['openAnnounceDoor', 'path must be', () => announceDoor.openAnnounceDoor('', () => {})],
  ['openAnnounceDoor', 'onAnnouncements must be', () => announceDoor.openAnnounceDoor('/x', wrong(1))],
  [
    'openAnnounceDoor',
    'mostDescriptors must be a positive integer of at most 253',
    () => announceDoor.openAnnounceDoor('/x', () => {}, { mostDescriptors: 254 }),
  ],
  ['openAnnounceDoor', 'mode must be', () => announceDoor.openAnnounceDoor('/x', () => {}, { mode: 0o1777 })],
  ['sendMessage', 'connection must be', () => announceDoor.sendMessage(-1, 'x')],
  ['sendMessage', 'text must be', () => announceDoor.sendMessage(0, '')],
  ['openLinkEvents', 'onResync must be a function', () => linkEvents.openLinkEvents(() => {}, wrong(0))],
];

it.each(cases)('%s: %s', (_function, message, call) => {
  expect(call).toThrow(TypeError);
  expect(call).toThrow(message);
});
