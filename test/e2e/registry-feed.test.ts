/** examples/registry/feed.ts beside a real agent: its file is what `GET /v1/services` says, and whole at every moment. */

import { readFileSync } from 'node:fs';
import { request } from 'node:http';
import { join } from 'node:path';
import { afterAll, beforeAll, expect, it } from 'vitest';
import type { ServicesMessage } from '../../src/api/messages.js';
import type { LabPod } from '../lab/pod.js';
import { INBOUND } from './agent.js';
import { useScene } from './scene.js';

const ADDRESS = '10.0.0.5:15006';

interface Feed {
  readonly apps: readonly {
    readonly namespace: string;
    readonly app: string;
    readonly node: string;
    readonly address: string;
    readonly pods: readonly { readonly uid: string; readonly ips: readonly string[] }[];
  }[];
}

const scene = useScene({ pods: [{ name: 'web' }, { name: 'db', topology: 'bridge' }], inbound: true });
const file = () => join(scene.lab.directory, 'registry.json');
const feed = () => JSON.parse(readFileSync(file(), 'utf8')) as Feed;

/** Everything that a reader has seen, who looks all the time. */
const seen = new Set<string>();
let looking: NodeJS.Timeout | undefined;

beforeAll(() => {
  const { lab, agent } = scene;
  const words = ['--no-install', 'tsx', 'examples/registry/feed.ts'];
  lab.daemon(lab.node, 'feed', 'npx', [...words, join(agent.runDir, 'http.sock'), file(), ADDRESS]);
  looking = setInterval(() => {
    try {
      seen.add(readFileSync(file(), 'utf8'));
    } catch (error) {
      if ((error as NodeJS.ErrnoException).code !== 'ENOENT' || seen.size > 0) {
        seen.add(String(error));
      }
    }
  }, 1);
});

afterAll(() => clearInterval(looking));

function services(query = ''): Promise<ServicesMessage['services']> {
  return new Promise((resolve, reject) => {
    const socketPath = join(scene.agent.runDir, 'http.sock');
    const headers = { 'nodesentry.io': 'true' };
    request({ socketPath, path: `/v1/services${query}`, headers }, async (response) => {
      const parts = await response.toArray();
      resolve((JSON.parse(Buffer.concat(parts).toString()) as ServicesMessage).services);
    })
      .on('error', reject)
      .end();
  });
}

const appOf = (app: string, ...pods: readonly LabPod[]) => ({
  namespace: 'default',
  app,
  node: 'node-a',
  pods: pods.map(({ uid, ips }) => expect.objectContaining({ uid, ips: [ips[4], ips[6]] })),
});

it('has the apps of the node with their pods, as the agent has them with its listeners', async () => {
  const wanted = [appOf('db', scene.pod('db')), appOf('web', scene.pod('web'))];
  await expect
    .poll(feed, { timeout: 20_000 })
    .toEqual({ apps: wanted.map((app) => ({ ...app, address: ADDRESS })) });
  const inbound = { ipv4: INBOUND[0], ipv6: INBOUND[1] };
  expect(await services()).toEqual(wanted.map((app) => ({ ...app, instance: 'default', inbound })));
});

it('follows a pod that comes, one that becomes another, and one that goes', async () => {
  const appsNow = () => feed().apps.map(({ app, pods }) => [app, pods.length]);
  const more = await scene.add({ name: 'more', described: { labels: { app: 'web' } } });
  await expect.poll(appsNow, { timeout: 20_000 }).toEqual([
    ['db', 1],
    ['web', 2],
  ]);
  // Not enrolled, so what it is sent goes straight to it.
  const direct = { ipv4: null, ipv6: null };
  expect(await services('?app=web')).toEqual([
    { ...appOf('web', more), instance: '', inbound: direct },
    expect.objectContaining({ ...appOf('web', scene.pod('web')), instance: 'default' }),
  ]);
  scene.describe(more, { labels: { app: 'cache' } });
  await expect.poll(appsNow, { timeout: 20_000 }).toEqual([
    ['cache', 1],
    ['db', 1],
    ['web', 1],
  ]);
  scene.drop(more);
  await expect.poll(appsNow, { timeout: 20_000 }).toEqual([
    ['db', 1],
    ['web', 1],
  ]);
});

it('stays as it is while the agent is away, and follows the next one', async () => {
  const before = readFileSync(file(), 'utf8');
  seen.clear();
  await scene.agent.stop('SIGKILL');
  await scene.agent.start();
  await scene.agent.adopted(4);
  await scene.agent.reaches('web', 'INTERCEPTED');
  scene.describe(scene.pod('db'), { labels: { app: 'store', 'nodesentry.io/intercept': 'enabled' } });
  await expect.poll(() => feed().apps.map(({ app }) => app), { timeout: 20_000 }).toEqual(['store', 'web']);
  expect([...seen][0]).toBe(before);
  expect(seen.size).toBe(2);
});

it('where the listener goes, the node is not where its apps are reached', async () => {
  await scene.proxy.stop();
  await expect
    .poll(async () => (await services()).map(({ inbound }) => inbound))
    .toEqual(Array(2).fill({ ipv4: null, ipv6: null }));
});

it('was whole whenever somebody looked', () => {
  clearInterval(looking);
  expect(seen.size).toBeGreaterThan(0);
  for (const text of seen) {
    expect((JSON.parse(text) as Feed).apps.length).toBeGreaterThan(0);
  }
});
