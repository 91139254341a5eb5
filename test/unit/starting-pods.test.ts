import { beforeEach, expect, it } from 'vitest';
import { StartingPods } from '../../src/reconcile/starting-pods.js';
import { uid } from './api-fixture.js';

const WEB = uid('uid-web');
let nowMs: number;
let starting: StartingPods;
beforeEach(() => {
  nowMs = 100;
  starting = new StartingPods(() => nowMs);
});

it('tells what a pod has waited for, from when it was asked for', () => {
  starting.add(WEB, 90);
  starting.ended(WEB, 'writing');
  nowMs = 130;
  starting.ended(WEB, 'queueing');
  nowMs = 135;
  starting.ended(WEB, 'proving');
  expect(starting.delete(WEB)).toEqual({ writing: 10, queueing: 30, proving: 5 });
  expect(starting.has(WEB)).toBe(false);
});

it('counts a part that is gone through again with the one that goes on', () => {
  starting.add(WEB, 100);
  nowMs = 110;
  starting.ended(WEB, 'installing');
  nowMs = 120;
  starting.ended(WEB, 'installing');
  starting.add(WEB, 120);
  starting.ended(WEB, 'proving');
  expect(starting.delete(WEB)).toEqual({ installing: 10, proving: 10 });
});

it('keeps nothing of a pod that does not wait', () => {
  starting.ended(WEB, 'queueing');
  expect([starting.list(), starting.delete(WEB)]).toEqual([[], {}]);
});
