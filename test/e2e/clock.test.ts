/** A clock that is set under a running agent, forwards and back. */

import { writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { setTimeout as delay } from 'node:timers/promises';
import { expect, it } from 'vitest';
import { waitFor } from '../lab/exec.js';
import { REMOTE } from '../lab/lab.js';
import { reply } from '../lab/pod.js';
import { useScene } from './scene.js';

const CLI = join(import.meta.dirname, '../../bin/nodesentry');
const FAKETIME = '/usr/lib/x86_64-linux-gnu/faketime/libfaketimeMT.so.1';

let offset: string;
let log = () => '';

const scene = useScene({
  pods: [{ name: 'web' }],
  prepare: async ({ lab }) => {
    offset = join(lab.directory, 'offset');
    setClock('+0');
  },
  startAgent: async ({ lab, agent }) => {
    const faked = [
      `LD_PRELOAD=${FAKETIME}`,
      `FAKETIME_TIMESTAMP_FILE=${offset}`,
      'FAKETIME_NO_CACHE=1',
      'DONT_FAKE_MONOTONIC=1',
    ];
    const globals = ['--run-dir', agent.runDir, '--bpffs', agent.bpffs, '--config', agent.configPath];
    const daemon = lab.daemon(lab.node, 'agent-faked', 'env', [...faked, CLI, ...globals, 'agent']);
    log = () => daemon.log();
    await daemon.logged(/"msg":"agent running"/, 30_000);
  },
});

function setClock(to: string): void {
  writeFileSync(offset, `${to}\n`);
}

/** Of the last line of the agent's log, which bears the clock that it sees. */
function agentDay(): string | undefined {
  return /"time":"(\d{4}-\d\d-\d\d)T/.exec(log().trim().split('\n').at(-1) ?? '')?.[1];
}

async function expectCalm(from: Readonly<Record<string, number>>): Promise<void> {
  const { agent } = scene;
  await delay(1_500);
  await agent.reaches('web', 'INTERCEPTED');
  await scene.expectAtProxy(scene.pod('web'));
  const { repairs, ready } = await agent.client.status();
  expect({ repairs, ready }).toEqual({ repairs: from, ready: true });
  await scene.expectNothingDirect();
}

/** Dialled, then dropped by its source: its flow is still answered for, for a minute of real time. */
async function endedPod(name: string): Promise<{ resolves: () => Promise<string> }> {
  const { agent } = scene;
  const pod = await scene.add({ name });
  await agent.reaches(name, 'INTERCEPTED');
  const { localPort } = reply(await pod.app(['dial', REMOTE[4], '80'], 10_000));
  scene.drop(pod);
  await waitFor(`${name} to be dropped`, async () => (await agent.workload(name)) === undefined);
  return {
    resolves: async () => {
      const { workload } = await agent.client.resolve({
        proto: 'tcp',
        src: { ip: pod.ips[4], port: Number(localPort) },
        dst: { ip: REMOTE[4], port: 80 },
      });
      return workload.state;
    },
  };
}

it('set one day ahead, then two days back: pods stay intercepted, ended ones are remembered for their minute', async () => {
  const { repairs } = await scene.agent.client.status();
  const ended = await endedPod('ended-before');
  expect(await ended.resolves()).toBe('TERMINATING');
  const today = agentDay();
  setClock('+1d');
  await expectCalm(repairs);
  const next = await endedPod('ended-ahead');
  expect(agentDay()).not.toBe(today);
  expect(await ended.resolves()).toBe('TERMINATING');
  setClock('-1d');
  await expectCalm(repairs);
  expect(await ended.resolves()).toBe('TERMINATING');
  expect(await next.resolves()).toBe('TERMINATING');
  await endedPod('ended-back');
  expect(agentDay()).not.toBe(today);
  await expectCalm(repairs);
}, 40_000);
