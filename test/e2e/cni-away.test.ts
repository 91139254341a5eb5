/** A real containerd and a real agent that goes for good, and nobody cleans up: the node must go on. */

import { readFileSync, statSync } from 'node:fs';
import { join } from 'node:path';
import { afterAll, beforeAll, expect, it } from 'vitest';
import { Containerd } from '../lab/containerd.js';
import { waitFor } from '../lab/exec.js';
import { Lab } from '../lab/lab.js';
import { TestAgent } from './agent.js';

/** Far more than a pod takes to start: who waits for it is seen to. */
const TIMEOUT_MS = 8_000;
const ENABLED = { 'nodesentry.io/intercept': 'enabled' };
const NAMED = '0d4c3a52-7c7e-4d0a-9d5e-0f6a3a0c1b11';

let lab: Lab;
let containerd: Containerd;
let agent: TestAgent;
let conflist: string;
let original: string;

async function callsUs(): Promise<boolean> {
  const { info } = (await containerd.call('Status', { verbose: true })) as { info: { cniconfig?: string } };
  return info.cniconfig?.includes('nodesentry-cni') === true;
}

beforeAll(async () => {
  lab = await Lab.create();
  containerd = await Containerd.start(lab, 'ptp');
  const { directory: confDir, plugins: binDir } = containerd.network;
  conflist = join(confDir, '10-lab.conflist');
  original = readFileSync(conflist, 'utf8');
  agent = new TestAgent(lab, {
    sources: {
      cri: { endpoint: `unix://${containerd.socket}` },
      static: { file: 'pods.yaml' },
      cni: {
        install: true,
        confDir,
        binDir,
        stateDir: join(lab.directory, 'cni-state'),
        timeoutMs: TIMEOUT_MS,
      },
    },
  });
  // The administrator's word on a pod that does not run yet: its labels are known before it starts.
  agent.writePods([
    {
      namespace: 'shop',
      name: 'named',
      uid: NAMED,
      runtime: 'runc',
      labels: ENABLED,
      ips: ['10.66.250.250'],
      netns: '/run/netns/none',
    },
  ]);
  await agent.start({ ready: false });
  await waitFor('containerd to load the chain', callsUs, 30_000);
});

afterAll(async () => {
  await lab?.close();
});

it('with an agent a pod that is not enrolled starts, and what is to happen without one is written down', async () => {
  const pod = await containerd.runPod({ name: 'before', runtime: 'runc' });
  await pod.stop();
  const rule = join(agent.runDir, 'cni-rule.json');
  await waitFor('the rule', () => readFileSync(rule, 'utf8').includes(`"${NAMED}":"hold"`));
  expect((statSync(rule).mode & 0o777).toString(8)).toBe('600');
});

it.each(['SIGTERM', 'SIGKILL'] as const)(
  'gone by %s: pods that are not enrolled start at once',
  async (signal) => {
    if (signal === 'SIGKILL') {
      await agent.start({ ready: false });
    }
    await agent.stop(signal);
    expect(await callsUs()).toBe(true);
    const started = performance.now();
    const pod = await containerd.runPod({ name: `plain-${signal}`, runtime: 'runc' });
    expect(performance.now() - started).toBeLessThan(TIMEOUT_MS);
    await pod.stop();
  },
);

it('while pods that are enrolled, by what they say or by what the agent knew, do not', async () => {
  const why = /did not answer within 8000 ms.*failure: closed/;
  const said = containerd.runPod({ name: 'said', runtime: 'runc', annotations: ENABLED });
  await expect(said).rejects.toThrow(why);
  const known = containerd.runPod({ name: 'named', namespace: 'shop', uid: NAMED, runtime: 'runc' });
  await expect(known).rejects.toThrow(why);
});

it('after cleanup everything starts, and the conflist is what it was', async () => {
  expect(await agent.cli('cleanup')).toMatchObject({ code: 0, stderr: '' });
  expect(readFileSync(conflist, 'utf8')).toBe(original);
  await waitFor('containerd to load the chain', async () => !(await callsUs()), 30_000);
  const pod = await containerd.runPod({ name: 'said', runtime: 'runc', annotations: ENABLED });
  await pod.stop();
});
