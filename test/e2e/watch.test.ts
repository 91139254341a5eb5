/** Whoever watches a real agent hears of its pods and endpoints; who had an address is known across a restart. */

import { once } from 'node:events';
import { type IncomingMessage, request } from 'node:http';
import { createInterface } from 'node:readline';
import { afterAll, expect, it } from 'vitest';
import type { IdentityLine } from '../../src/api/messages.js';
import type { PastResolution } from '../../src/identity/past.js';
import { waitFor } from '../lab/exec.js';
import { useScene } from './scene.js';

const scene = useScene({ pods: [{ name: 'web' }] });
const closers: (() => void)[] = [];
afterAll(() => {
  for (const close of closers) {
    close();
  }
});

async function get(path: string): Promise<IncomingMessage> {
  const { socketPath } = scene.agent.client;
  const asked = request({ socketPath, path, headers: { 'nodesentry.io': 'true' } });
  asked.on('error', () => {}); // ours, or the agent has ended
  closers.push(() => asked.destroy());
  asked.end();
  const [response] = await once(asked, 'response');
  return response as IncomingMessage;
}

/** What comes, for as long as it does. */
async function watch(query = ''): Promise<IdentityLine[]> {
  const lines: IdentityLine[] = [];
  const response = await get(`/v1/watch${query}`);
  response.on('error', () => {});
  createInterface({ input: response })
    .on('line', (line) => lines.push(JSON.parse(line)))
    .on('error', () => {});
  return lines;
}

async function heldBy(address: string, at: number): Promise<Partial<PastResolution>> {
  const response = await get(`/v1/resolve?address=${address}&at=${at}&minAssurance=IP_ONLY`);
  return JSON.parse((await response.toArray()).join(''));
}

it('hears of a pod that comes, and of its endpoint by the generation', async () => {
  const lines = await watch();
  await waitFor('the snapshot', async () => lines.at(-1)?.type === 'SNAPSHOT_DONE');
  expect(lines).toMatchObject([
    { type: 'SNAPSHOT' },
    {
      type: 'UPSERT',
      workload: { podName: 'web', generation: 1, spiffeId: expect.stringContaining('/sa/web') },
    },
    { type: 'SNAPSHOT_DONE' },
  ]);
  await scene.add({ name: 'more' });
  await scene.agent.reaches('more', 'INTERCEPTED');
  expect(lines.slice(3)).toMatchObject([
    { type: 'UPSERT', workload: { podName: 'more', generation: 0 } },
    { type: 'UPSERT', workload: { podName: 'more', generation: 1 } },
  ]);
  const { epoch, revision } = lines.at(-1) ?? {};
  const resumed = await watch(`?epoch=${epoch}&since=${revision}`);
  await waitFor('the rest', async () => resumed.at(-1)?.type === 'SNAPSHOT_DONE');
  expect(resumed).toMatchObject([
    { type: 'UPSERT', workload: { podName: 'more' } },
    { type: 'SNAPSHOT_DONE' },
  ]);
});

it('knows after a restart who had an address before, and that the epoch is another', async () => {
  const [address = ''] = (await scene.agent.workload('web'))?.ips ?? [];
  const before = Date.now();
  const lines = await watch();
  await waitFor('the snapshot', async () => lines.at(-1)?.type === 'SNAPSHOT_DONE');
  await scene.agent.stop('SIGKILL');
  await scene.agent.start();
  await scene.agent.reaches('web', 'INTERCEPTED');
  const { epoch, revision } = lines.at(-1) ?? {};
  const again = await watch(`?epoch=${epoch}&since=${revision}`);
  await waitFor('the snapshot', async () => again.at(-1)?.type === 'SNAPSHOT_DONE');
  expect(again[0]).toMatchObject({ type: 'SNAPSHOT', epoch: expect.not.stringMatching(epoch ?? '') });
  for (const at of [before, Date.now()]) {
    expect(await heldBy(address, at)).toMatchObject({
      workload: { podName: 'web', generation: 1, state: 'LIVE' },
      until: null,
    });
  }
});
