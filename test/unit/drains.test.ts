import { mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { beforeEach, expect, it, onTestFinished } from 'vitest';
import { type Drain, Drains } from '../../src/drain/drains.js';
import { uid } from './api-fixture.js';
import { recordingLog } from './reconcile-fixture.js';

const SINCE = { sinceMs: 1_700_000_000_000 };
const WEB = uid('web-0');

let path: string;
let log: ReturnType<typeof recordingLog>;

const nextAgent = () => new Drains(path, log);

beforeEach(() => {
  const directory = mkdtempSync(join(tmpdir(), 'drains-'));
  onTestFinished(() => rmSync(directory, { recursive: true }));
  path = join(directory, 'drains.json');
  log = recordingLog();
});

it("a pod's own comes before its app's, and that before the node's", () => {
  const drains = nextAgent();
  const all: Drain = { scope: { all: true }, ...SINCE };
  const app: Drain = { scope: { app: 'web' }, to: 'app', ...SINCE };
  const pod: Drain = { scope: { pod: WEB }, to: 'pod', ...SINCE };
  expect(drains.of(WEB, 'web')).toBeUndefined();
  drains.add(all);
  expect(drains.of(WEB, 'web')).toBe(all);
  drains.add(app);
  expect(drains.of(WEB, 'web')).toBe(app);
  expect(drains.of(WEB, 'pay')).toBe(all);
  expect(drains.of(WEB, undefined)).toBe(all);
  drains.add(pod);
  expect(drains.of(WEB, 'web')).toBe(pod);
  expect(drains.of(uid('web-1'), 'web')).toBe(app);
});

it('resuming takes exactly that scope back, and of the whole node every one', () => {
  const drains = nextAgent();
  drains.add({ scope: { pod: WEB }, ...SINCE });
  drains.add({ scope: { app: 'web' }, ...SINCE });
  drains.add({ scope: { app: 'pay' }, ...SINCE });
  expect(drains.remove({ pod: uid('web-1') })).toBe(0);
  expect(drains.remove({ app: 'web' })).toBe(1);
  expect(drains.list()).toMatchObject([{ scope: { pod: WEB } }, { scope: { app: 'pay' } }]);
  expect(drains.remove({ all: true })).toBe(2);
  expect(drains.list()).toEqual([]);
});

it('the next agent knows them', () => {
  const drains: Drain[] = [
    { scope: { pod: WEB }, ...SINCE },
    { scope: { app: 'web' }, to: 'other', ...SINCE, deadlineMs: SINCE.sinceMs + 30_000 },
    { scope: { all: true }, ...SINCE },
  ];
  const before = nextAgent();
  for (const drain of drains) {
    before.add(drain);
  }
  const after = nextAgent();
  expect(after.list()).toEqual(drains);
  after.remove({ all: true });
  expect(nextAgent().list()).toEqual([]);
  expect(log.warn).not.toHaveBeenCalled();
});

it.each([
  'no JSON',
  '{"version":2,"drains":[]}',
  '{"version":1,"drains":[{"scope":{"app":""},"sinceMs":1}]}',
  '{"version":1,"drains":[{"scope":{"pod":"a/b"},"sinceMs":1}]}',
])('a broken file is told and not used: %s', (text) => {
  writeFileSync(path, text);
  const drains = nextAgent();
  expect(drains.list()).toEqual([]);
  expect(log.warn).toHaveBeenCalledExactlyOnceWith(
    expect.anything(),
    expect.stringContaining('cannot be read'),
  );
  drains.add({ scope: { app: 'web' }, ...SINCE });
  expect(nextAgent().list()).toHaveLength(1);
});

it('a pod that is no more is forgotten', () => {
  const drains = nextAgent();
  drains.add({ scope: { pod: WEB }, ...SINCE });
  drains.add({ scope: { pod: uid('web-1') }, ...SINCE });
  drains.add({ scope: { app: 'web' }, ...SINCE });
  drains.forgetPods((candidate) => candidate === WEB);
  expect(drains.list()).toMatchObject([{ scope: { pod: 'web-1' } }, { scope: { app: 'web' } }]);
  expect(readFileSync(path, 'utf8')).not.toContain('web-0');
});
