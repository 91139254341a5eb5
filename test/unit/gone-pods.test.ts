import { beforeEach, expect, test } from 'vitest';
import { GonePods } from '../../src/pods/gone-pods.js';
import type { Pod, SourceName } from '../../src/pods/pod.js';
import { pod as podOf, uid } from './api-fixture.js';

const pod = (name: string, ...sources: SourceName[]): Pod => podOf(name, { sources });

let nowMs: number;
let gone: GonePods;

beforeEach(() => {
  nowMs = 1000;
  gone = new GonePods(() => nowMs);
});

const both = pod('a', 'cri', 'kubernetes');
const thinner = pod('a', 'cri');
const states = (name = 'a') => [
  gone.departed(uid(`uid-${name}`))?.pod,
  gone.removed(uid(`uid-${name}`))?.pod,
];

test('a pod that no source names any more is removed, as it was and since then', () => {
  gone.note(both.uid, both, undefined);
  expect(states()).toEqual([undefined, both]);
  expect(gone.removed(both.uid)?.atMs).toBe(1000);
});

test('a pod that one of its sources dropped has departed', () => {
  gone.note(both.uid, both, thinner);
  expect(states()).toEqual([both, undefined]);
});

test('a pod that changes otherwise, or that a source comes to know, has not gone', () => {
  gone.note(both.uid, thinner, { ...thinner, sandboxId: 's' });
  gone.note(both.uid, thinner, both);
  expect(states()).toEqual([undefined, undefined]);
});

test('of several departures the first counts, until all those sources are back', () => {
  const all = pod('a', 'static', 'cri', 'kubernetes');
  gone.note(all.uid, all, both);
  nowMs += 10;
  gone.note(all.uid, both, thinner);
  expect(gone.departed(all.uid)).toMatchObject({ pod: all, atMs: 1000 });
  gone.note(all.uid, thinner, both);
  expect(states()).toEqual([all, undefined]);
  gone.note(all.uid, both, all);
  expect(states()).toEqual([undefined, undefined]);
});

test('a pod that departed and was then removed is remembered as it was at first, for 60 s from its removal', () => {
  gone.note(both.uid, both, thinner);
  nowMs += 50_000;
  gone.note(both.uid, thinner, undefined);
  nowMs += 59_999;
  expect(states()).toEqual([undefined, both]);
  nowMs += 1;
  expect(states()).toEqual([undefined, undefined]);
});

test('a removed pod that comes back is forgotten, by less sources than before too', () => {
  gone.note(both.uid, both, undefined);
  gone.note(both.uid, undefined, thinner);
  expect(states()).toEqual([undefined, undefined]);
});

test('an old one is forgotten, and a younger one that went before it once is not', () => {
  const other = pod('b', 'cri');
  gone.note(both.uid, both, thinner);
  gone.note(other.uid, other, undefined);
  nowMs += 30_000;
  gone.note(both.uid, thinner, undefined);
  nowMs += 30_000;
  expect(states('b')).toEqual([undefined, undefined]);
  expect(states('a')).toEqual([undefined, both]);
});

test('the time for which pods are remembered can be another', () => {
  gone = new GonePods(() => nowMs, 5_000);
  gone.note(both.uid, both, undefined);
  nowMs += 4_999;
  expect(states()).toEqual([undefined, both]);
  nowMs += 1;
  expect(states()).toEqual([undefined, undefined]);
});
