/** What the real plugin does with pods while no agent runs, by the rule that the agent has left. */

import { mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterEach, beforeEach, describe, expect, test } from 'vitest';
import { CNI_RULE_NAME, type CniRule, cniRule } from '../../src/api/cni-rule.js';
import type { Pod } from '../../src/pods/pod.js';
import { pod, uid as toUid } from './api-fixture.js';
import { AgentStandIn, answering, callPlugin, type PluginRun, POD } from './cni-plugin-lab.js';

let folder: string;
const cleanups: (() => Promise<void>)[] = [];

beforeEach(() => {
  folder = mkdtempSync(join(tmpdir(), 'nodesentry-absence-'));
});

afterEach(async () => {
  await Promise.all(cleanups.splice(0).map((step) => step()));
  rmSync(folder, { recursive: true, force: true });
});

const WAIT_MS = 400;
const leave = (rule: CniRule | string) =>
  writeFileSync(join(folder, CNI_RULE_NAME), typeof rule === 'string' ? rule : JSON.stringify(rule));

interface Case {
  readonly uid?: string;
  readonly namespace?: string;
  readonly annotations?: Readonly<Record<string, string>>;
  readonly command?: string;
  readonly failure?: 'closed' | 'open';
  /** Path of the rule that is left on disk. */
  readonly rule?: string;
}

function start({
  uid = 'new-1',
  namespace = 'plain',
  command = 'ADD',
  failure = 'closed',
  annotations,
  rule,
}: Case) {
  const configuration = {
    cniVersion: '1.1.0',
    name: 'pods',
    type: 'nodesentry-cni',
    socket: join(folder, 'cni.sock'),
    timeoutMs: WAIT_MS,
    failure,
    ...(rule === undefined ? {} : { rule }),
    prevResult: { cniVersion: '1.1.0' },
    runtimeConfig: annotations && { 'io.kubernetes.cri.pod-annotations': annotations },
  };
  const args = `K8S_POD_NAMESPACE=${namespace};K8S_POD_NAME=p;K8S_POD_UID=${uid}`;
  return callPlugin({ ...POD, CNI_COMMAND: command, CNI_ARGS: args }, JSON.stringify(configuration));
}

/** What became of the pod: by its exit code, and by how long it took. */
function fate(run: PluginRun): 'held' | 'waited' | 'at once' {
  if (run.code !== 0) {
    expect(JSON.parse(run.stdout)).toMatchObject({
      code: 11,
      msg: expect.stringContaining('failure: closed'),
    });
    return 'held';
  }
  expect(run.stderr).toContain('so the pod is let pass as one that is not enrolled');
  return run.tookMs >= WAIT_MS ? 'waited' : 'at once';
}

function podIn(uid: string, namespace: string, labels: Record<string, string> = {}): Pod {
  return pod(uid, { uid: toUid(uid), namespace, labels });
}

const ENABLED = { 'nodesentry.io/intercept': 'enabled' };
const DISABLED = { 'nodesentry.io/intercept': 'disabled' };
const namespaces = new Map([
  ['shop', 'enabled'],
  ['system', 'disabled'],
  ['plain', undefined],
  ['mixed', undefined],
]);
const pods = [podIn('in-shop', 'shop', ENABLED), podIn('own', 'mixed', ENABLED), podIn('left', 'mixed')];
const LABELLED = cniRule({
  enrol: 'labelled',
  failure: 'closed',
  other: 'pass',
  pods,
  namespaces,
  selfEnrolling: new Set(),
});
const ALL = cniRule({
  enrol: 'all',
  failure: 'closed',
  other: 'pass',
  pods: [...pods, podIn('out', 'plain', DISABLED)],
  namespaces,
  selfEnrolling: new Set(),
});

describe('enrol: labelled', () => {
  test.each([
    ['known as not enrolled', { uid: 'left', namespace: 'mixed' }, 'at once'],
    ['known as enrolled', { uid: 'own', namespace: 'mixed' }, 'held'],
    ['new in a namespace that enrols', { namespace: 'shop' }, 'held'],
    ['new where others enrolled themselves', { namespace: 'mixed' }, 'held'],
    ['new in any other namespace', { namespace: 'plain' }, 'waited'],
    ['new in a namespace that says disabled', { namespace: 'system' }, 'waited'],
    ['new in a namespace that is new', { namespace: 'later' }, 'waited'],
    [
      'that says so itself, in a namespace that does not',
      { namespace: 'plain', annotations: ENABLED },
      'held',
    ],
    [
      'that says disabled, in a namespace that enrols',
      { namespace: 'shop', annotations: DISABLED },
      'at once',
    ],
    ['with annotations of others', { namespace: 'shop', annotations: { a: 'b' } }, 'held'],
  ] satisfies [string, Case, string][])('a pod %s: %s', async (_, which, expected) => {
    leave(LABELLED);
    expect(fate(await start(which))).toBe(expected);
  });
});

describe('after a boot, which has emptied the folder of the socket', () => {
  const onDisk = () => join(folder, 'rule.json');

  test('what the last agent left on disk holds', async () => {
    writeFileSync(onDisk(), JSON.stringify(LABELLED));
    expect(fate(await start({ uid: 'left', namespace: 'mixed', rule: onDisk() }))).toBe('at once');
    expect(fate(await start({ namespace: 'shop', rule: onDisk() }))).toBe('held');
  });

  test('and not any more once there is a word beside the socket', async () => {
    writeFileSync(onDisk(), JSON.stringify(LABELLED));
    leave(ALL);
    expect(fate(await start({ namespace: 'later', rule: onDisk() }))).toBe('held');
  });

  test('without either every pod is held', async () => {
    expect(fate(await start({ uid: 'left', namespace: 'mixed', rule: onDisk() }))).toBe('held');
  });
});

describe('enrol: all', () => {
  test.each([
    ['known as left out', { uid: 'out', namespace: 'plain' }, 'at once'],
    ['that says disabled', { namespace: 'plain', annotations: DISABLED }, 'at once'],
    ['new anywhere', { namespace: 'later' }, 'held'],
    ['new in a namespace that says disabled', { namespace: 'system' }, 'waited'],
    [
      'that says something else',
      { namespace: 'system', annotations: { 'nodesentry.io/intercept': 'x' } },
      'held',
    ],
  ] satisfies [string, Case, string][])('a pod %s: %s', async (_, which, expected) => {
    leave(ALL);
    expect(fate(await start(which))).toBe(expected);
  });
});

describe('without a source that knows labels of pods that start', () => {
  test.each([
    ['labelled', { namespace: 'plain' }, 'at once'],
    ['labelled', { uid: 'own', namespace: 'mixed' }, 'held'],
    ['labelled', { namespace: 'mixed' }, 'at once'],
    ['labelled', { namespace: 'plain', annotations: ENABLED }, 'held'],
    ['all', { namespace: 'plain' }, 'held'],
    ['all', { namespace: 'plain', annotations: DISABLED }, 'at once'],
  ] satisfies ['labelled' | 'all', Case, string][])(
    'enrol: %s, a pod %j: %s',
    async (enrol, which, expected) => {
      leave(
        cniRule({
          enrol,
          failure: 'closed',
          other: 'pass',
          pods,
          namespaces: undefined,
          selfEnrolling: new Set(),
        }),
      );
      expect(fate(await start(which))).toBe(expected);
    },
  );
});

test('a pod that is let pass hands the result of the plugin before it on', async () => {
  leave(LABELLED);
  expect(await start({ uid: 'left' })).toMatchObject({ code: 0, stdout: '{"cniVersion":"1.1.0"}\n' });
  expect(fate(await start({ uid: 'left', command: 'CHECK' }))).toBe('at once');
});

test.each([
  ['no rule', undefined],
  ['one of another version', JSON.stringify({ ...LABELLED, version: 2 })],
  ['one that was cut off', JSON.stringify(LABELLED).slice(0, -40)],
  ['no JSON object', '[1]'],
])('%s holds up every pod', async (_, text) => {
  if (text !== undefined) {
    leave(text);
  }
  expect(fate(await start({ uid: 'left', annotations: DISABLED }))).toBe('held');
});

test('words that are not understood hold a pod up', async () => {
  leave(JSON.stringify({ ...LABELLED, pods: { left: 'perhaps' }, namespaces: [], others: 7 }));
  expect(fate(await start({ uid: 'left' }))).toBe('held');
  expect(fate(await start({}))).toBe('held');
});

/** As the agent names itself in its lock: pid, and when that process started. */
function lockedBy(pid: number, started: string): void {
  writeFileSync(join(folder, 'agent.pid'), `${pid} ${started}\n`);
}

test('an agent that is starting is waited for, one that was killed is not', async () => {
  leave(LABELLED);
  const stat = readFileSync('/proc/self/stat', 'utf8');
  const started = stat.slice(stat.lastIndexOf(')') + 2).split(' ')[19] ?? '';
  lockedBy(process.pid, started);
  expect(fate(await start({ uid: 'left' }))).toBe('held');
  const status = await start({ command: 'STATUS' });
  expect([status.code, JSON.parse(status.stdout)]).toEqual([1, expect.objectContaining({ code: 50 })]);
  lockedBy(process.pid, `${Number(started) + 1}`);
  expect(fate(await start({ uid: 'left' }))).toBe('at once');
});

test('an agent that is there and does not answer, or is not ready, is no agent that has gone', async () => {
  leave(LABELLED);
  for (const behaviour of [() => undefined, answering({ ok: false, code: 11, msg: 'later', retry: true })]) {
    const agent = await AgentStandIn.listen(join(folder, 'cni.sock'), behaviour);
    expect(fate(await start({ uid: 'left' }))).toBe('held');
    await agent.close();
  }
});

test('an agent that comes back in time is asked', async () => {
  leave(LABELLED);
  const running = start({ namespace: 'plain' });
  const agent = await AgentStandIn.listen(
    join(folder, 'cni.sock'),
    answering({ ok: false, code: 100, msg: 'no veth', retry: false }),
  );
  cleanups.push(() => agent.close());
  expect(await running).toMatchObject({ code: 1, stdout: expect.stringContaining('no veth') });
});

test('the network is ready with a rule: without that no pod would start at all', async () => {
  expect((await start({ command: 'STATUS' })).code).toBe(1);
  leave(LABELLED);
  expect(await start({ command: 'STATUS' })).toMatchObject({
    code: 0,
    stdout: '',
    stderr: expect.stringContaining('pods that are enrolled do not start'),
  });
});
