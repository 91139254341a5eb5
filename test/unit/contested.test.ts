/** When a repair is a dispute, and when it is over. */

import { expect, test } from 'vitest';
import { Contested } from '../../src/reconcile/contested.js';

const RULE = new Set(['the rule']);
const NOTHING = new Set<string>();

function after(...looks: readonly ReadonlySet<string>[]): string[] {
  const contested = new Contested();
  for (const look of looks) {
    contested.note(look);
  }
  return contested.list();
}

test('one or two repairs are an accident, three are a dispute', () => {
  expect(after(RULE, RULE)).toEqual([]);
  expect(after(RULE, RULE, RULE)).toEqual(['the rule']);
});

test('a look that happens to come before the next removal does not end it, two do', () => {
  expect(after(RULE, NOTHING, RULE, NOTHING, RULE)).toEqual(['the rule']);
  expect(after(RULE, RULE, RULE, NOTHING)).toEqual(['the rule']);
  expect(after(RULE, RULE, RULE, NOTHING, NOTHING)).toEqual([]);
});

test('two things repaired in turn are two accidents', () => {
  const route = new Set(['the route']);
  expect(after(RULE, route, RULE, route)).toEqual([]);
});
