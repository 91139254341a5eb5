/** Node service discovery: apps of this node by `GET /v1/services`, and an example that feeds a registry. */

import { existsSync, readFileSync } from 'node:fs';
import { join } from 'node:path';
import { expect, it } from 'vitest';
import { HttpDoor } from '../../src/conformance/doors.js';
import { INBOUND } from './agent.js';
import { useScene } from './scene.js';

const scene = useScene({ pods: [{ name: 'web' }, { name: 'db' }], inbound: true });

const http = () => new HttpDoor(join(scene.agent.runDir, 'http.sock'));

it('names each app with its pods, and where their instance takes connections to them', async () => {
  const [web, db] = ['web', 'db'].map((name) => {
    const { uid, ips } = scene.pod(name);
    const spiffeId = `spiffe://cluster.local/ns/default/sa/${name}`;
    const pods = [{ uid, namespace: 'default', podName: name, spiffeId, ips: [ips[4], ips[6]] }];
    return { app: name, instance: 'default', inbound: [...INBOUND], pods };
  });
  const { status, body } = await http().send('GET', '/v1/services');
  expect([status, body]).toMatchObject([200, { services: [db, web] }]);
  expect((await http().send('GET', '/v1/services?app=web')).body).toMatchObject({ services: [web] });
  expect((await http().send('GET', '/v1/services?app=none')).body).toMatchObject({ services: [] });
});

it('examples/registry/feed.ts keeps a file in step with the pods', async () => {
  const file = join(scene.lab.directory, 'registry.json');
  const words = [
    '--no-install',
    'tsx',
    'examples/registry/feed.ts',
    join(scene.agent.runDir, 'http.sock'),
    file,
  ];
  scene.lab.daemon(scene.lab.node, 'feed', 'npx', words);
  const apps = () =>
    existsSync(file) ? Object.keys(JSON.parse(readFileSync(file, 'utf8')) as object).sort() : [];
  await expect.poll(apps, { timeout: 30_000 }).toEqual(['db', 'web']);
  await scene.addPlain('cache');
  await expect.poll(apps, { timeout: 10_000 }).toEqual(expect.arrayContaining(['cache']));
  scene.drop(scene.pod('db'));
  await expect.poll(apps, { timeout: 10_000 }).not.toContain('db');
});
