import { once } from 'node:events';
import { type ClientReadableStream, type ServiceError, status } from '@grpc/grpc-js';
import { afterEach, describe, expect, test, vi } from 'vitest';
import { endpoint, pod, uid } from './api-fixture.js';
import { afterwards, ask, closeAll, FLOW, identityClient, refusal, start } from './grpc-fixture.js';

afterEach(closeAll);

interface Told {
  readonly event: string;
  readonly epoch: string;
  readonly revision: number;
  readonly upsert?: { podName: string; generation: number };
  readonly removed?: { uid: string; generation: number };
}

function follow(path: string, request: object = {}) {
  const call = identityClient(path).Watch?.(request) as ClientReadableStream<Told>;
  const events: Told[] = [];
  call.on('data', (event: Told) => events.push(event));
  call.on('error', () => undefined);
  afterwards(() => call.cancel());
  const until = async (...expected: string[]) => {
    await vi.waitFor(() => expect(events.map(short)).toEqual(expected), { timeout: 5_000 });
    return events.splice(0);
  };
  return { call, events, until };
}

function short({ event, revision, upsert, removed }: Told): string {
  switch (event) {
    case 'upsert':
      return `+${upsert?.podName}/${upsert?.generation}@${revision}`;
    case 'removed':
      return `-${removed?.uid}/${removed?.generation}@${revision}`;
    default:
      return `${event}@${revision}`;
  }
}

const ended = async (call: ClientReadableStream<unknown>) => (await once(call, 'status'))[0] as ServiceError;
const other = pod('other', { ips: ['10.66.0.4'] });

describe('Watch', () => {
  test('tells of the pods that live, as Resolve does, then of each change', async () => {
    const { api, store, datapath } = await start();
    const { until } = follow(api.path);
    const [first, upsert] = await until('snapshot@0', '+web-0/3@1', 'snapshotDone@1');
    const { resolution } = await ask(identityClient(api.path), 'Resolve', { flow: FLOW });
    expect(first).toMatchObject({ epoch: 'epoch-1', snapshot: {} });
    expect(upsert?.upsert).toEqual((resolution as { workload: object }).workload);
    datapath.statuses.push(endpoint(uid('uid-other'), { generation: 4 }));
    store.replaceSource('static', [pod('web-0'), other]);
    store.replaceSource('static', [other]);
    await until('+other/4@2', '-uid-web-0/3@3');
  });

  test('goes on from where a caller was, and tells all anew where that is not known', async () => {
    const { api, store } = await start();
    store.replaceSource('static', [pod('web-0'), other]);
    await follow(api.path, { epoch: 'epoch-1', since: 1 }).until('+other/0@2', 'snapshotDone@2');
    await follow(api.path, { epoch: 'epoch-1', since: 2 }).until('snapshotDone@2');
    const anew = ['snapshot@0', '+web-0/3@1', '+other/0@2', 'snapshotDone@2'];
    await follow(api.path, { epoch: 'epoch-1', since: 9 }).until(...anew);
    await follow(api.path, { epoch: 'epoch-0', since: 1 }).until(...anew);
  });

  test('says that it is there while nothing happens', async () => {
    const { api } = await start({ watch: { heartbeatMs: 20 } });
    const { events } = follow(api.path);
    await vi.waitFor(() => expect(events.map(short)).toContain('heartbeat@1'));
  });

  test('a reader that is too slow is told LOST, and gets what it missed when it comes back', async () => {
    const { api, store } = await start({ watch: { queueLimit: 8 } });
    const slow = follow(api.path);
    const quick = follow(api.path);
    await slow.until('snapshot@0', '+web-0/3@1', 'snapshotDone@1');
    await quick.until('snapshot@0', '+web-0/3@1', 'snapshotDone@1');
    slow.call.pause();
    const labels = { app: 'x'.repeat(20_000) };
    for (let at = 2; at < 200; at += 1) {
      store.replaceSource('static', [pod('web-0'), pod('other', { ips: [`10.66.1.${at}`], labels })]);
      await vi.waitFor(() => expect(quick.events.at(-1)?.revision).toBe(at), { interval: 1 });
    }
    const [{ code }] = await Promise.all([ended(slow.call), slow.call.resume()]);
    expect(code).toBe(status.OK);
    const lost = slow.events.at(-1);
    expect(lost).toMatchObject({ event: 'lost', revision: slow.events.at(-2)?.revision });
    expect(lost?.revision).toBeLessThan(199);
    expect(quick.events).toHaveLength(198);
    const { epoch, revision } = lost ?? expect.fail();
    await follow(api.path, { epoch, since: revision }).until('+other/0@199', 'snapshotDone@199');
  });

  test('refuses where as many watch as may, until one has gone', async () => {
    const { api, watch } = await start({ watch: { maxWatchers: 1 } });
    const first = follow(api.path);
    await first.until('snapshot@0', '+web-0/3@1', 'snapshotDone@1');
    const second = identityClient(api.path).Watch?.({}) as ClientReadableStream<Told>;
    expect(await refusal(once(second.resume(), 'end'))).toMatchObject({
      code: status.RESOURCE_EXHAUSTED,
      reason: 'RATE_LIMITED',
    });
    first.call.cancel();
    await vi.waitFor(() => expect(watch.full).toBe(false));
    await follow(api.path).until('snapshot@0', '+web-0/3@1', 'snapshotDone@1');
  });

  test.each([
    [{ since: 1 }, 'since: 1 is a revision of which epoch?'],
    [{ epoch: 'no epoch', since: 1 }, 'epoch: expected the epoch of an earlier answer, got "no epoch"'],
  ])('a malformed request is told which key is wrong (%#)', async (request, details) => {
    const { api } = await start();
    const call = identityClient(api.path).Watch?.(request) as ClientReadableStream<Told>;
    expect(await refusal(once(call.resume(), 'end'))).toMatchObject({
      code: status.INVALID_ARGUMENT,
      reason: 'KEY_INVALID',
      details,
    });
  });

  test('ends when the agent ends', async () => {
    const { api, watch } = await start();
    const { call, until } = follow(api.path);
    await until('snapshot@0', '+web-0/3@1', 'snapshotDone@1');
    const [{ code }] = await Promise.all([ended(call), watch.close()]);
    expect(code).toBe(status.OK);
  });
});
