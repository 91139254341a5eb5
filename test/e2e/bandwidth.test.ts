/**
 * Beside the CNI bandwidth plugin (`kubernetes.io/egress-bandwidth`), Debian's own: what a pod sends goes through an IFB
 * device, and what is intercepted obeys the limit as well.
 */

import { spawnSync } from 'node:child_process';
import { basename } from 'node:path';
import { describe, expect, it } from 'vitest';
import { tcxSupported } from '../../src/native/bpf.js';
import { inNetns, runIn, waitFor } from '../lab/exec.js';
import { REMOTE } from '../lab/lab.js';
import { PATIENCE } from '../lab/patience.js';
import { hostIndexOf } from '../lab/plain.js';
import { type LabPod, reply } from '../lab/pod.js';
import { useScene } from './scene.js';

const PLUGIN = '/usr/lib/cni/bandwidth';
/** Bits a second; far below what the slowest machine does. */
const RATE = 8_000_000 / PATIENCE;
const BURST = 800_000; // bits
const BYTES = (4 << 20) / PATIENCE;
/** The plugin's own; a program in the place of its limit would not be slower than the loopback. */
const TOO_FAST_S = ((BYTES * 8 - BURST) / RATE) * 0.8;

const scene = useScene({
  pods: [
    { name: 'limited' },
    { name: 'bridged', topology: 'bridge' },
    // As a chain of plugins has it: the limit is there before we are.
    { name: 'later', described: { labels: { app: 'later' } } },
  ],
});

async function hostInterface(pod: LabPod): Promise<string> {
  return (await interception(pod.name))?.interface ?? '';
}

/** The plugin as a runtime calls it, last in the chain. */
function bandwidth(command: 'ADD' | 'DEL', pod: LabPod, host: string): void {
  const configuration = {
    cniVersion: '0.4.0',
    name: 'lab',
    type: 'bandwidth',
    ...{ egressRate: RATE, egressBurst: BURST, ingressRate: 0, ingressBurst: 0 },
    prevResult: {
      cniVersion: '0.4.0',
      interfaces: [{ name: host }, { name: 'eth0', sandbox: pod.netns }],
      ips: [{ version: '4', address: `${pod.ips[4]}/24`, interface: 1 }],
    },
  };
  const environment = {
    CNI_COMMAND: command,
    CNI_CONTAINERID: pod.name,
    CNI_NETNS: pod.netns,
    CNI_IFNAME: 'eth0',
    CNI_PATH: '/usr/lib/cni',
  };
  const { status, stdout } = spawnSync(...inNetns(scene.lab.node, PLUGIN, []), {
    input: JSON.stringify(configuration),
    env: { ...process.env, ...environment },
    encoding: 'utf8',
  });
  expect([status, status === 0 ? '' : stdout]).toEqual([0, '']);
}

async function push(pod: LabPod, family: 4 | 6): Promise<{ readonly seconds: number }> {
  const began = performance.now();
  expect(reply(await pod.app(['push', REMOTE[family], '80', String(BYTES)], 60_000))).toMatchObject({
    ok: true,
  });
  return { seconds: (performance.now() - began) / 1_000 };
}

function interception(name: string) {
  return scene.agent.workload(name).then((workload) => workload?.interception);
}

if (tcxSupported()) {
  describe('at a routed interface', () => {
    it('what is intercepted obeys the limit, in both families, and reaches the proxy', async () => {
      const pod = scene.pod('limited');
      expect((await push(pod, 4)).seconds).toBeLessThan(TOO_FAST_S);
      bandwidth('ADD', pod, await hostInterface(pod));
      const isShaped = async () => (await push(pod, 4)).seconds > TOO_FAST_S;
      await waitFor('the limit to hold', isShaped, 20_000, 100);
      expect((await push(pod, 6)).seconds).toBeGreaterThan(TOO_FAST_S);
      await scene.expectAtProxy(pod, 4);
      await scene.expectAtProxy(pod, 6);
      expect(await interception('limited')).toMatchObject({ state: 'INTERCEPTED', verified: true });
      await scene.expectNothingDirect();
    });

    it('without the limit it is as before', async () => {
      const pod = scene.pod('limited');
      bandwidth('DEL', pod, await hostInterface(pod));
      await runIn(scene.lab.node, 'tc', ['qdisc', 'del', 'dev', await hostInterface(pod), 'ingress']);
      const isFree = async () => (await push(pod, 4)).seconds < TOO_FAST_S;
      await waitFor('the limit to be gone', isFree, 20_000, 100);
      await scene.expectAtProxy(pod, 4);
      await scene.expectNothingDirect();
    });
  });

  it('at the port of a bridge the limit does not hold for what is intercepted: DEGRADED', async () => {
    const pod = scene.pod('bridged');
    bandwidth('ADD', pod, await hostInterface(pod));
    await scene.agent.reaches('bridged', 'DEGRADED');
    expect((await interception('bridged'))?.reason).toMatch(
      /bandwidth plugin.*not applied.*take kubernetes\.io\/egress-bandwidth off/,
    );
    await scene.expectAtProxy(pod, 4);
    await scene.expectNothingDirect();
  });
} else {
  it('before Linux 6.6 its filter comes first, and nothing is intercepted: DEGRADED', async () => {
    const pod = scene.pod('later');
    const index = await hostIndexOf(basename(pod.netns));
    const links = JSON.parse(await runIn(scene.lab.node, 'ip', ['-j', 'link'])) as {
      ifindex: number;
      ifname: string;
    }[];
    bandwidth('ADD', pod, links.find(({ ifindex }) => ifindex === index)?.ifname ?? '');
    scene.describe(pod);
    await scene.agent.reaches('later', 'DEGRADED');
    const told = /bandwidth plugin.*before Linux 6.6/;
    await waitFor('it to be told', async () => told.test((await interception('later'))?.reason ?? ''));
    expect(await interception('later')).toMatchObject({ programmed: true, verified: false });
  });
}
