/** Pods that start while our plugin is not in the chain, beside one that it announces. */

import { join } from 'node:path';
import { expect, it } from 'vitest';
import type { StatusMessage } from '../../src/api/messages.js';
import { createNetwork } from '../lab/cni.js';
import { runPlainPod } from '../lab/plain.js';
import { useScene } from './scene.js';

const MEANING = 'its first connections may have gone past the proxy';

const scene = useScene({ pods: [{ name: 'before' }], agent: { sources: { cni: {} } } });

async function podsLate(): Promise<number | undefined> {
  const { stdout } = await scene.agent.cli('status', '--json');
  return (JSON.parse(stdout) as StatusMessage).podsLate;
}

it('the pods that were there before the agent are not late, nor is one that the plugin announces', async () => {
  const socket = join(scene.agent.runDir, 'cni.sock');
  const announced = await runPlainPod(scene.lab, createNetwork(scene.lab, 'bridge', { socket }), 'announced');
  scene.describe(announced);
  await scene.agent.reaches('announced', 'INTERCEPTED');
  expect(await podsLate()).toBe(0);
});

it('one that the plugin did not announce is, once, and is told', async () => {
  await scene.addPlain('late');
  await scene.agent.reaches('late', 'INTERCEPTED');
  expect(await podsLate()).toBe(1);
  const lines = scene.agent
    .log()
    .split('\n')
    .filter((line) => line.includes(MEANING));
  expect(lines).toHaveLength(1);
  expect(lines[0]).toContain('default/late');
});

it('the next agent counts none of them again', async () => {
  await scene.agent.stop();
  await scene.agent.start();
  await scene.agent.reaches('late', 'INTERCEPTED');
  expect(await podsLate()).toBe(0);
  await scene.addPlain('later');
  await scene.agent.reaches('later', 'INTERCEPTED');
  expect(await podsLate()).toBe(1);
});
