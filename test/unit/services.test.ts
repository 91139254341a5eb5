/** GET /v1/services: what a registry publishes of this node, app by app. */

import { Pool } from 'undici';
import { afterEach, expect, test } from 'vitest';
import type { ServicesMessage } from '../../src/api/messages.js';
import type { ListenerStatus } from '../../src/datapath/listeners.js';
import type { Pod } from '../../src/pods/pod.js';
import { endpoint, type Fixture, pod, startFixture, uid } from './api-fixture.js';

const opened: (() => Promise<unknown>)[] = [];

afterEach(async () => {
  for (const close of opened.splice(0).reverse()) {
    await close();
  }
});

const labelled = (app: string, fields: Partial<Pod> = {}): Partial<Pod> => ({
  labels: { app, 'nodesentry.io/intercept': 'enabled' },
  ...fields,
});

function inbound(instance: string, family: 4 | 6, address: string, adopted = true): ListenerStatus {
  return {
    instance,
    direction: 'inbound',
    family,
    address,
    adopted,
    sockets: { all: 1, transparent: 1 },
  };
}

async function start(prepare: (fixture: Fixture) => void) {
  const fixture = await startFixture({ empty: true });
  opened.push(() => fixture.close());
  const pool = new Pool('http://localhost', { socketPath: fixture.api.path });
  opened.push(() => pool.destroy());
  prepare(fixture);
  return async (query = '') => {
    const headers = { 'nodesentry.io': 'true' };
    const { statusCode, body } = await pool.request({ method: 'GET', path: `/v1/services${query}`, headers });
    expect(statusCode).toBe(200);
    return ((await body.json()) as ServicesMessage).services;
  };
}

test('pods of one app are one service, at the node’s listener where that gets what they are sent', async () => {
  const services = await start(({ store, datapath }) => {
    store.replaceSource('static', [
      pod('web-0', labelled('web')),
      pod('web-1', labelled('web', { ips: ['10.66.0.4', 'fd00:66::4'] })),
      pod('db-0', labelled('db', { ips: ['10.66.0.5'], serviceAccount: 'db' })),
    ]);
    datapath.statuses.push(
      endpoint(uid('uid-web-0'), { inbound: true }),
      endpoint(uid('uid-web-1'), { inbound: true, generation: 4 }),
      endpoint(uid('uid-db-0'), { inbound: true, instance: 'other' }),
    );
    datapath.listening = [
      inbound('default', 4, '10.0.0.5:15006'),
      inbound('default', 6, '[fd00::5]:15006', false),
      inbound('other', 4, '10.0.0.5:15016'),
      { ...inbound('default', 6, '[fd00::5]:15001'), direction: 'outbound' },
    ];
  });
  const web = {
    namespace: 'default',
    app: 'web',
    node: 'node-a',
    instance: 'default',
    inbound: { ipv4: '10.0.0.5:15006', ipv6: null },
    pods: [
      {
        uid: 'uid-web-0',
        generation: 3,
        podName: 'web-0',
        spiffeId: 'spiffe://cluster.local/ns/default/sa/web',
        ips: ['10.66.0.3'],
      },
      {
        uid: 'uid-web-1',
        generation: 4,
        podName: 'web-1',
        spiffeId: 'spiffe://cluster.local/ns/default/sa/web',
        ips: ['10.66.0.4', 'fd00:66::4'],
      },
    ],
  };
  expect(await services()).toEqual([
    expect.objectContaining({
      app: 'db',
      instance: 'other',
      inbound: { ipv4: '10.0.0.5:15016', ipv6: null },
    }),
    web,
  ]);
  expect(await services('?app=web')).toEqual([web]);
  expect(await services('?app=nothing')).toEqual([]);
});

test('a pod that is reached by its own address is not behind the listener', async () => {
  const services = await start(({ store, datapath }) => {
    store.replaceSource('static', [
      pod('both', labelled('web')),
      pod('outbound-only', labelled('web', { ips: ['10.66.0.4'] })),
      pod('degraded', labelled('web', { ips: ['10.66.0.5'] })),
      pod('unseen', labelled('web', { ips: ['10.66.0.6'] })),
    ]);
    datapath.statuses.push(
      endpoint(uid('uid-both'), { inbound: true }),
      endpoint(uid('uid-outbound-only')),
      endpoint(uid('uid-degraded'), { inbound: true, state: 'DEGRADED', reason: 'x' }),
    );
    datapath.listening = [inbound('default', 4, '10.0.0.5:15006')];
  });
  const found = (await services()).map((service) => [
    service.instance,
    service.inbound.ipv4,
    service.pods.map(({ podName }) => podName),
  ]);
  expect(found).toEqual([
    ['', null, ['degraded', 'outbound-only', 'unseen']],
    ['default', '10.0.0.5:15006', ['both']],
  ]);
});

test('one app of two namespaces is two, and who has no name or has gone is in none', async () => {
  const services = await start(({ store }) => {
    const gone = pod('gone', labelled('web', { ips: ['10.66.0.9'] }));
    store.replaceSource('static', [gone]);
    store.replaceSource('static', [
      pod('web-0', labelled('web')),
      pod('web-1', labelled('web', { namespace: 'shop', ips: ['10.66.0.4'] })),
      pod('nameless', labelled('web', { serviceAccount: '', ips: ['10.66.0.5'] })),
      pod('no-app', { labels: {}, ips: ['10.66.0.6'] }),
    ]);
  });
  const found = (await services('?app=web')).map(({ namespace, pods }) => [
    namespace,
    pods.map(({ podName }) => podName),
  ]);
  expect(found).toEqual([
    ['default', ['web-0']],
    ['shop', ['web-1']],
  ]);
});
