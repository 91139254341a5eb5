/** Which of a pod's flows are intercepted, as its annotations, the configuration and the instances of ports say. */

import { setTimeout as sleep } from 'node:timers/promises';
import { afterEach, beforeAll, describe, expect, it } from 'vitest';
import { inNetns, runIn, tryRun, waitFor } from '../lab/exec.js';
import { buildApp } from '../lab/image.js';
import { REMOTE } from '../lab/lab.js';
import { Load } from '../lab/load.js';
import { patient } from '../lab/patience.js';
import type { PlainPod } from '../lab/plain.js';
import { reply } from '../lab/pod.js';
import { sized } from '../lab/size.js';
import { BOTH_WAYS, useScene } from './scene.js';

const FAMILIES = [4, 6] as const;
const PODS = ['routed', 'bridged'] as const;
const OTHER_PORT = 81;
const CACHE_PORT = 6_379;
const CHANGES = sized(30, 100);
const FAR = { 4: '10.199.0.2', 6: 'fd00:199::2' } as const;

const scene = useScene({
  pods: [{ name: 'routed' }, { name: 'bridged', topology: 'bridge' }],
  inbound: true,
  agent: {
    interception: { excludeOutboundCidrs: ['192.0.2.0/24'] },
    instances: [BOTH_WAYS, { name: 'cache', ports: CACHE_PORT, outbound: '127.0.0.1:16379' }],
  },
  prepare: async ({ lab }) => {
    const server = lab.daemon(lab.remote, 'other-server', await buildApp(), ['serve', String(OTHER_PORT)]);
    await server.logged(/"serving":true/);
  },
});

const bracket = (ip: string) => (ip.includes(':') ? `[${ip}]` : ip);

/** What the pod says from now on. When that holds is for the caller to wait for. */
function say(name: string, annotations: Record<string, string>): void {
  scene.describe(scene.pod(name), { annotations });
}

/** Whom the server saw: the pod itself, or the proxy. */
async function sent(name: string, family: 4 | 6, port = 80): Promise<'direct' | 'intercepted'> {
  const pod = scene.pod(name);
  const dialled = reply(await pod.app(['dial', REMOTE[family], String(port)]));
  expect(dialled).toMatchObject({ ok: true });
  const own = `${bracket(pod.ips[family])}:${dialled.localPort}`;
  return (dialled.server as { peer: string }).peer === own ? 'direct' : 'intercepted';
}

/** What the agent says of it. */
async function said(name: string, family: 4 | 6, port = 80): Promise<string> {
  const dst = { ip: REMOTE[family], port };
  const { outcome, inForce } = await scene.agent.client.explain(name, { dst });
  return `${outcome === 'INTERCEPTED' ? 'intercepted' : 'direct'}${inForce ? '' : ', not in force'}`;
}

/** The same of what a client far away dials at the pod's port 80. */
async function received(name: string, family: 4 | 6): Promise<'direct' | 'intercepted'> {
  const words = ['dial', scene.pod(name).ips[family], '80'];
  const output = await tryRun(...inNetns(scene.lab.remote, await buildApp(), words), {
    timeoutMs: patient(30_000),
  });
  const dialled = reply(output);
  expect(dialled).toMatchObject({ ok: true });
  const own = `${bracket(FAR[family])}:${dialled.localPort}`;
  return (dialled.server as { peer: string }).peer === own ? 'direct' : 'intercepted';
}

beforeAll(async () => {
  for (const name of PODS) {
    expect(reply(await scene.pod(name).app(['server', '80']))).toMatchObject({ serving: true });
  }
});

afterEach(async () => {
  for (const name of PODS) {
    say(name, {});
    await waitFor(`all of ${name} to be intercepted again`, async () => {
      const told = await Promise.all(FAMILIES.map((family) => said(name, family, OTHER_PORT)));
      return told.every((outcome) => outcome === 'intercepted');
    });
  }
});

describe.each(PODS)('a %s pod', (name) => {
  const becomes = (wanted: 'direct' | 'intercepted', family: 4 | 6, port?: number) =>
    waitFor(`port ${port} to be ${wanted}`, async () => (await sent(name, family, port)) === wanted).then(
      async () => expect(await said(name, family, port)).toBe(wanted),
    );

  it.each(FAMILIES)('IPv%i: dials only the ports that it names through the proxy', async (family) => {
    say(name, { 'nodesentry.io/outbound': '80,8000-8080' });
    await becomes('direct', family, OTHER_PORT);
    expect(await sent(name, family)).toBe('intercepted');
    say(name, { 'nodesentry.io/outbound': 'none' });
    await becomes('direct', family);
    say(name, {});
    await becomes('intercepted', family, OTHER_PORT);
    expect(await sent(name, family)).toBe('intercepted');
  });

  it.each(FAMILIES)(
    'IPv%i: dials what it excludes, and what it does not include, past the proxy',
    async (family) => {
      const other = family === 4 ? 6 : 4;
      const all = `${REMOTE[family]}/${family === 4 ? 24 : 64}`;
      say(name, { 'nodesentry.io/exclude-outbound-cidrs': all });
      await becomes('direct', family);
      expect(await sent(name, other)).toBe('intercepted');
      say(name, { 'nodesentry.io/include-outbound-cidrs': all });
      await becomes('direct', other);
      expect(await sent(name, family)).toBe('intercepted');
    },
  );

  it.each(FAMILIES)(
    'IPv%i: is dialled only at the ports that it names, and by whom it includes',
    async (family) => {
      const reached = (wanted: 'direct' | 'intercepted') =>
        waitFor(`it to be ${wanted}`, async () => (await received(name, family)) === wanted);
      await reached('intercepted');
      say(name, { 'nodesentry.io/inbound': '443' });
      await reached('direct');
      say(name, { 'nodesentry.io/exclude-inbound-cidrs': '192.0.2.0/24' });
      await reached('intercepted');
      say(name, { 'nodesentry.io/exclude-inbound-cidrs': `${FAR[family]}/${family === 4 ? 32 : 128}` });
      await reached('direct');
    },
  );

  it('has its flows to the port of an instance in the hands of that one, which may be missing alone', async () => {
    const { netnsName } = scene.pod(name) as PlainPod;
    const dial = `socat -u -T1 TCP:${REMOTE[4]}:${CACHE_PORT},connect-timeout=5 - 2>&1 || true`;
    const reached = async () => (await runIn(netnsName, 'sh', ['-c', dial])).trim();
    // Nobody listens for it: its failure policy is closed.
    expect(await reached()).toContain('Connection refused');
    const listen = 'TCP-LISTEN:16379,bind=127.0.0.1,fork,reuseaddr';
    const cache = scene.lab.daemon(scene.lab.node, `cache-${name}`, 'socat', [listen, 'SYSTEM:echo cache']);
    await waitFor('the cache to be reached', async () => (await reached()) === 'cache');
    expect(await sent(name, 4)).toBe('intercepted');
    say(name, { 'nodesentry.io/outbound': '80' });
    await waitFor('it to be left alone', async () => (await reached()).includes('refused'));
    say(name, {});
    await cache.stop();
    const { instances } = await scene.agent.client.instances();
    const pods = instances.find((instance) => instance.name === 'cache')?.pods ?? [];
    expect(pods.map(({ podName }) => podName)).toEqual(expect.arrayContaining([...PODS]));
  });
});

it(`${CHANGES} changes of its ports break no open flow, and each new flow follows what holds`, async () => {
  const pod = scene.pod('routed');
  const load = await Load.start(
    scene.lab,
    FAMILIES.flatMap((family) => [
      { pod, family, everyMs: 5, kind: 'keepalive' as const },
      { pod, family, everyMs: 20, kind: 'connects' as const },
    ]),
  );
  try {
    for (let change = 0; change < CHANGES; change++) {
      const [outbound, wanted] = change % 2 === 0 ? ['81', 'direct'] : ['80', 'intercepted'];
      say('routed', { 'nodesentry.io/outbound': outbound as string });
      await waitFor(`change ${change}`, async () => (await sent('routed', 4)) === wanted);
      // From then on it is so, of every flow.
      expect(await sent('routed', 6)).toBe(wanted);
      expect(await sent('routed', 4)).toBe(wanted);
    }
    expect((await load.stop()).filter(({ failures }) => failures > 0)).toEqual([]);
  } finally {
    await load.end();
  }
}, 180_000);

describe('a pod that is only observed', () => {
  const observe = async () => {
    say('routed', {
      'nodesentry.io/mode': 'observe',
      'nodesentry.io/exclude-outbound-cidrs': `${REMOTE[6]}/128`,
    });
    await scene.agent.reaches('routed', 'OBSERVED');
  };

  it('is left alone in both directions, and the others are not', async () => {
    const load = await Load.start(scene.lab, [
      { pod: scene.pod('routed'), family: 4, everyMs: 5, kind: 'keepalive' },
    ]);
    await observe();
    for (const family of FAMILIES) {
      expect(await sent('routed', family)).toBe('direct');
      expect(await received('routed', family)).toBe('direct');
      expect(await sent('bridged', family)).toBe('intercepted');
    }
    // What was open at the proxy before goes on there.
    expect((await load.stop()).filter(({ failures }) => failures > 0)).toEqual([]);
    await load.end();
    say('routed', {});
    await scene.agent.reaches('routed', 'INTERCEPTED');
    expect(await sent('routed', 4)).toBe('intercepted');
  });

  it('is rehearsed: what would become of its flows, which rules stand behind it, and which open ones are spared', async () => {
    await observe();
    const lasting = await Load.start(scene.lab, [
      { pod: scene.pod('routed'), family: 4, everyMs: 20, kind: 'keepalive' },
    ]);
    const rehearsed = scene.agent.cli(
      'rehearse',
      '--for',
      '3s',
      '--json',
      '--config',
      scene.agent.configPath,
    );
    await waitFor('somebody to follow', async () => {
      await sent('routed', 4);
      await sent('routed', 6);
      await received('routed', 4);
      const output = await Promise.race([rehearsed, sleep(50)]);
      return output !== undefined;
    });
    await lasting.end();
    const { stdout, stderr, code } = await rehearsed;
    expect([code, stderr]).toEqual([0, '']);
    const { pods, flows } = JSON.parse(stdout) as {
      pods: { pod: string; state: string }[];
      flows: {
        pod: string;
        direction: string;
        to: string;
        outcome: string;
        instance: string;
        rule: string;
        flows: number;
      }[];
    };
    expect(pods).toContainEqual(expect.objectContaining({ pod: 'default/routed', state: 'OBSERVED' }));
    const of = (direction: string, to: string, outcome: string) =>
      flows.find(
        (flow) =>
          flow.pod === 'default/routed' &&
          flow.direction === direction &&
          flow.to === to &&
          flow.outcome === outcome,
      );
    expect(of('EGRESS', `${REMOTE[4]}:80`, 'WOULD_INTERCEPT')).toMatchObject({
      instance: 'default',
      rule: 'nothing excludes it',
    });
    expect(of('EGRESS', `${bracket(REMOTE[6])}:80`, 'EXCLUDED')).toMatchObject({
      instance: '',
      rule: `nodesentry.io/exclude-outbound-cidrs ${REMOTE[6]}/128 has ${REMOTE[6]}`,
    });
    expect(of('INGRESS', 'port 80', 'WOULD_INTERCEPT')?.flows).toBeGreaterThan(0);
    expect(of('EGRESS', `${REMOTE[4]}:80`, 'OBSERVED')?.flows).toBe(1);
  });

  it('is rehearsed in words, and not at all by a configuration that cannot be read', async () => {
    await observe();
    const { agent, lab } = scene;
    const words = ['rehearse', '--for', '1s'];
    const rehearsed = agent.cli(...words);
    await waitFor('it to end', async () => {
      await sent('routed', 4);
      return (await Promise.race([rehearsed, sleep(50)])) !== undefined;
    });
    const { stdout } = await rehearsed;
    expect(stdout).toMatch(/^default\/routed +OBSERVED +-$/m);
    expect(stdout).toMatch(/^default\/routed +EGRESS +\S+:80 +\d+ +would be intercepted +default +nothing/m);
    const elsewhere = ['--run-dir', agent.runDir, '--config', '/nowhere/config.yaml'];
    const refused = await tryRun(...inNetns(lab.node, agent.binary, [...words, ...elsewhere]));
    expect(refused).toMatchObject({ code: 1, stdout: '' });
    expect(refused.stderr).toContain('/nowhere/config.yaml');
  });
});
