/** Draining over HTTP: whom it is about, what is open, and each refusal with the field that it is about. */

import { mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { beforeEach, describe, expect, it, onTestFinished, vi } from 'vitest';
import { ApiClient, type DrainRequest } from '../../src/api/client.js';
import { Draining, type ProxyConnection } from '../../src/drain/draining.js';
import { Drains } from '../../src/drain/drains.js';
import { DST, endpoint, type Fixture, flowRecord, pod, SRC, startFixture, uid } from './api-fixture.js';
import { recordingLog } from './reconcile-fixture.js';

const WEB = uid('uid-web-0');
const NOW_MS = 1_700_000_000_000;

let agent: Fixture;
let client: ApiClient;
let draining: Draining;
let clock: { nowMs: number };
let open: ProxyConnection[];
const changed = vi.fn(async () => undefined);
const end = vi.fn((connections: readonly ProxyConnection[]) => connections.length);

beforeEach(async () => {
  const directory = mkdtempSync(join(tmpdir(), 'drains-'));
  open = [{ local: DST, peer: SRC, id: Buffer.from('1') }];
  clock = { nowMs: NOW_MS };
  changed.mockClear();
  end.mockClear().mockImplementation((connections) => connections.length);
  agent = await startFixture({
    config:
      'node: node-a\nsources: {static: {file: pods.yaml}}\n' +
      'instances: [{name: other, apps: [x], outbound: "127.0.0.1:16001"}, {name: both, apps: [y], outbound: "127.0.0.1:16002", inbound: "127.0.0.1:16003"}, {name: default, outbound: "127.0.0.1:15001"}]',
    drains: (store, datapath) => {
      const log = recordingLog();
      draining = new Draining({
        drains: new Drains(join(directory, 'drains.json'), log),
        store,
        datapath,
        synced: () => agent.state.synced,
        changed,
        connections: (ips) => open.filter(({ peer }) => ips.includes(peer.ip)),
        end,
        nowMs: () => clock.nowMs,
        log,
      });
      return draining;
    },
  });
  client = new ApiClient({ runDir: agent.runDir });
  onTestFinished(async () => {
    await client.close();
    await agent.close();
    rmSync(directory, { recursive: true });
  });
});

it.each(['web-0', 'default/web-0', 'uid-web-0'])(
  'a pod is drained by what it is called: %s',
  async (name) => {
    const message = {
      scope: { pod: WEB },
      to: '',
      since: NOW_MS,
      deadline: NOW_MS + 30_000,
      pods: [{ uid: WEB, namespace: 'default', podName: 'web-0', state: 'INTERCEPTED', openFlows: 1 }],
    };
    expect(await client.drain({ pod: name, deadlineSeconds: 30 })).toEqual(message);
    expect(changed).toHaveBeenCalledOnce();
    expect(await client.drains()).toEqual({ problem: '', drains: [message] });
    expect((await client.workload(WEB)).interception.openFlows).toBe(1);
    expect(await client.resume({ pod: name })).toEqual({ resumed: 1 });
    expect(await client.drains()).toEqual({ problem: '', drains: [] });
    expect(await client.resume({ pod: name })).toEqual({ resumed: 0 });
    expect((await client.workload(WEB)).interception).not.toHaveProperty('openFlows');
  },
);

it('an app and the node are drained, each with the pods that nothing else decides about', async () => {
  agent.store.replaceSource('static', [pod('web-0'), pod('pay-0', { labels: { app: 'pay' }, ips: [] })]);
  await client.drain({ app: 'web', to: 'other' });
  const all = await client.drain({ all: true });
  expect(all).toMatchObject({ scope: { all: true }, deadline: null, pods: [{ podName: 'pay-0' }] });
  expect((await client.drains()).drains).toMatchObject([
    { scope: { app: 'web' }, to: 'other', pods: [{ podName: 'web-0' }] },
    { scope: { all: true } },
  ]);
  expect(await client.resume({ all: true })).toEqual({ resumed: 2 });
});

it('what is open at the instance that a pod is drained to is not waited for', async () => {
  agent.datapath.flows.push(flowRecord({ ip: SRC.ip, port: 2 }, DST, { instance: 'other' }));
  open.push({ local: DST, peer: { ip: SRC.ip, port: 2 }, id: Buffer.from('2') });
  expect((await client.drain({ pod: 'web-0', to: 'other' })).pods).toMatchObject([{ openFlows: 1 }]);
  expect((await client.drain({ pod: 'web-0' })).pods).toMatchObject([{ openFlows: 2 }]);
});

describe('when the deadline is over', () => {
  it('what was recorded for the pod is ended, and nothing before, and nothing of another', async () => {
    agent.datapath.flows.push(flowRecord({ ip: SRC.ip, port: 2 }, DST, { endpointId: 2 }));
    const others = { local: DST, peer: { ip: SRC.ip, port: 2 }, id: Buffer.from('2') };
    const unknown = { local: DST, peer: { ip: SRC.ip, port: 3 }, id: Buffer.from('3') };
    const [own] = open;
    open.push(others, unknown);
    await client.drain({ pod: 'web-0', deadlineSeconds: 1 });
    draining.endOverdue();
    expect(end).not.toHaveBeenCalled();
    clock.nowMs += 1_000;
    agent.state.synced = false;
    draining.endOverdue();
    expect(end).not.toHaveBeenCalled();
    agent.state.synced = true;
    draining.endOverdue();
    expect(end).toHaveBeenCalledExactlyOnceWith([own]);
  });

  it('is seen to by itself from the start on, and again while something is open', async () => {
    draining.start();
    onTestFinished(() => draining.close());
    await client.drain({ pod: 'web-0', deadlineSeconds: 60 });
    expect(end).not.toHaveBeenCalled();
    await client.drain({ pod: 'web-0', deadlineSeconds: 0 });
    await vi.waitFor(() => expect(end).toHaveBeenCalledTimes(1));
    await vi.waitFor(() => expect(end).toHaveBeenCalledTimes(2), 3_000);
    open.length = 0;
  });

  it('a kernel that cannot end them is told, until it can', async () => {
    end.mockImplementationOnce(() => {
      throw new Error('EOPNOTSUPP');
    });
    await client.drain({ pod: 'web-0', deadlineSeconds: 0 });
    draining.endOverdue();
    expect((await client.drains()).problem).toBe('what is open after a deadline cannot be ended: EOPNOTSUPP');
    draining.endOverdue();
    expect((await client.drains()).problem).toBe('');
  });
});

describe('refused by its field', () => {
  const refusals: readonly (readonly [object, number, string, string])[] = [
    [{}, 400, 'KEY_INVALID', 'expected one of pod, app, all, got none'],
    [{ pod: 'web-0', app: 'web' }, 400, 'KEY_INVALID', 'app: expected one of pod, app, all, got pod and app'],
    [{ pod: 7 }, 400, 'KEY_INVALID', 'pod: expected'],
    [{ app: '' }, 400, 'KEY_INVALID', 'app: expected'],
    [{ all: false }, 400, 'KEY_INVALID', 'all: expected true'],
    [{ pod: 'web-0', colour: 'red' }, 400, 'KEY_INVALID', 'colour: unknown key'],
    [{ pod: 'web-0', deadlineSeconds: -1 }, 400, 'KEY_INVALID', 'deadlineSeconds: expected'],
    [{ pod: 'web-0', deadlineSeconds: '30' }, 400, 'KEY_INVALID', 'deadlineSeconds: expected'],
    [{ pod: 'web-0', to: 7 }, 400, 'KEY_INVALID', 'to: expected'],
    [{ all: true, to: 'both' }, 400, 'KEY_INVALID', 'to: both has an inbound listener and other has none'],
    [{ pod: 'nobody' }, 404, 'WORKLOAD_NOT_FOUND', 'pod: no pod of this node is nobody'],
    [{ pod: 'other/web-0' }, 404, 'WORKLOAD_NOT_FOUND', 'pod: no pod of this node is other/web-0'],
    [{ app: 'nothing' }, 404, 'WORKLOAD_NOT_FOUND', 'app: no pod of this node is of nothing'],
    [{ pod: 'web-0', to: 'nowhere' }, 404, 'INSTANCE_NOT_FOUND', 'to: no instance is named nowhere'],
  ];

  it.each(refusals)('%o', async (body, status, code, message) => {
    await expect(client.drain(body as DrainRequest)).rejects.toMatchObject({
      status,
      code,
      message: expect.stringContaining(message),
    });
    expect(changed).not.toHaveBeenCalled();
    expect(await client.drains()).toMatchObject({ drains: [] });
  });

  it('a name that two pods have', async () => {
    agent.store.replaceSource('static', [pod('web-0'), pod('web-0', { uid: uid('b'), namespace: 'b' })]);
    await expect(client.drain({ pod: 'web-0' })).rejects.toMatchObject({ status: 409, code: 'AMBIGUOUS' });
    expect((await client.drain({ pod: 'b/web-0' })).scope).toEqual({ pod: 'b' });
  });

  it('one that may still come', async () => {
    agent.state.synced = false;
    await expect(client.drain({ pod: 'nobody' })).rejects.toMatchObject({ status: 503, code: 'NOT_SYNCED' });
  });
});

it('a deadline that has passed is known to the next look of a pod that has gone', async () => {
  agent.datapath.statuses.push(endpoint(WEB, { state: 'DRAINED' }));
  await client.drain({ pod: 'web-0', deadlineSeconds: 0 });
  agent.store.replaceSource('static', []);
  draining.endOverdue();
  expect(end).not.toHaveBeenCalled();
  expect(await client.resume({ pod: WEB })).toEqual({ resumed: 1 });
});
