/** The file that the agent leaves beside its socket for the CNI plugin. */

import { existsSync, mkdtempSync, readFileSync, rmSync, statSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterEach, beforeEach, expect, test } from 'vitest';
import { CniRuleFile, type KnownToAgent } from '../../src/api/cni-rule.js';
import type { Pod } from '../../src/pods/pod.js';
import { pod, uid as toUid } from './api-fixture.js';

let folder: string;
let known: Omit<KnownToAgent, 'selfEnrolling'> | undefined;
let warnings: string[];

const path = () => join(folder, 'cni-rule.json');
const read = () => JSON.parse(readFileSync(path(), 'utf8')) as Record<string, unknown>;
const open = (enrol: 'labelled' | 'all' = 'labelled') =>
  new CniRuleFile({
    paths: [path(), join(folder, 'on-disk/rule.json')],
    enrol,
    known: () => known,
    log: { warn: (_: object, message: string) => void warnings.push(message) },
  });

beforeEach(() => {
  folder = mkdtempSync(join(tmpdir(), 'nodesentry-rule-'));
  known = {
    enrol: 'labelled',
    failure: 'closed',
    other: 'pass',
    pods: [],
    namespaces: new Map([['team', undefined]]),
  };
  warnings = [];
});

afterEach(() => rmSync(folder, { recursive: true, force: true }));

function podIn(uid: string, namespace: string, annotations: Record<string, string>): Pod {
  return pod(uid, { uid: toUid(uid), namespace, labels: {}, annotations });
}

const OWN = { 'nodesentry.io/intercept': 'enabled' };

test('is written for root alone, and anew only where something has changed', () => {
  const file = open();
  file.refresh();
  expect((statSync(path()).mode & 0o777).toString(8)).toBe('600');
  const { ino } = statSync(path());
  file.refresh();
  expect(statSync(path()).ino).toBe(ino);
  known = { ...(known as KnownToAgent), namespaces: new Map([['team', 'enabled']]) };
  file.refresh();
  expect(read()).toMatchObject({ namespaces: { team: 'hold' }, others: 'wait' });
});

test('is the same at each place, and what one of them remembers counts', () => {
  known = { ...(known as KnownToAgent), pods: [podIn('a', 'team', OWN)] };
  open().refresh();
  const onDisk = () => readFileSync(join(folder, 'on-disk/rule.json'), 'utf8');
  expect(onDisk()).toBe(readFileSync(path(), 'utf8'));
  rmSync(path()); // as a boot does
  known = { ...known, pods: [] };
  open().refresh();
  expect(read()).toMatchObject({ selfEnrolling: ['team'] });
});

test('stays as it was left until every source has told what it knows', () => {
  open().refresh();
  const before = readFileSync(path(), 'utf8');
  known = undefined;
  open().refresh();
  expect(readFileSync(path(), 'utf8')).toBe(before);
});

test('of another configuration, or one that cannot be read, goes when the agent starts', () => {
  open().refresh();
  open('all');
  expect(existsSync(path())).toBe(false);
  writeFileSync(path(), '{"version": 1');
  open();
  expect(existsSync(path())).toBe(false);
});

test('where pods enrolled themselves is remembered when they and the agent have gone, until the namespace goes', () => {
  const pods = [podIn('a', 'team', OWN), podIn('b', 'gone', OWN)];
  known = { ...(known as KnownToAgent), pods };
  open().refresh();
  expect(read()).toMatchObject({ pods: { a: 'hold', b: 'hold' }, namespaces: { team: 'hold' } });
  known = { ...known, pods: [] };
  open().refresh();
  expect(read()).toMatchObject({ pods: {}, namespaces: { team: 'hold' }, selfEnrolling: ['team'] });
  known = { ...known, namespaces: new Map() };
  open().refresh();
  expect(read()).toMatchObject({ namespaces: {}, selfEnrolling: [] });
});

test('that cannot be written is told once, and ends nothing', () => {
  const file = open();
  rmSync(folder, { recursive: true });
  writeFileSync(folder, 'no folder');
  file.refresh();
  file.refresh();
  const failure = 'cni: the rule for the time without an agent cannot be written';
  expect(warnings).toEqual([failure, failure]); // one for each place
  rmSync(folder);
  file.refresh();
  expect(read()).toMatchObject({ version: 1 });
});
