/**
 * Beside kube-proxy's IPVS mode: services live on an interface of the node, and IPVS takes every packet to them at
 * LOCAL_IN, whatever socket it was given. Needs ip_vs in the kernel (test/lab/kernel-parts.ts).
 */

import { describe, expect, it } from 'vitest';
import { Capture, POD_TCP } from '../lab/capture.js';
import { runIn, script, waitFor } from '../lab/exec.js';
import { buildApp } from '../lab/image.js';
import { REMOTE } from '../lab/lab.js';
import { type LabPod, reply } from '../lab/pod.js';
import { sized } from '../lab/size.js';
import { OUTBOUND } from './agent.js';
import { type Scene, useScene } from './scene.js';

const SERVICE = { 4: '10.96.0.10', 6: 'fd00:96::10' } as const;
const WEB = 'web';
const NEIGHBOUR = 'neighbour';
const OUTBOUND_UDP = ['127.0.0.1:15053', '[::1]:15053'];
const CONNECTIONS = sized(100, 1_000);

/**
 * As kube-proxy writes it: the service's addresses on kube-ipvs0, a virtual server for each; what the node itself sends to a
 * service, which has the service's address as its source, is masqueraded.
 */
async function kubeProxy({ lab }: Scene): Promise<void> {
  await script(
    lab.node,
    `ip link add kube-ipvs0 type dummy
     ip addr add ${SERVICE[4]}/32 dev kube-ipvs0
     ip addr add ${SERVICE[6]}/128 dev kube-ipvs0 nodad
     sysctl -qw net.ipv4.vs.conntrack=1 net.ipv4.vs.conn_reuse_mode=0
     ipvsadm -A -t ${SERVICE[4]}:80 -s rr
     ipvsadm -a -t ${SERVICE[4]}:80 -r ${REMOTE[4]}:80 -m
     ipvsadm -A -t [${SERVICE[6]}]:80 -s rr
     ipvsadm -a -t [${SERVICE[6]}]:80 -r [${REMOTE[6]}]:80 -m
     ipvsadm -A -u ${SERVICE[4]}:53 -s rr
     ipvsadm -a -u ${SERVICE[4]}:53 -r ${REMOTE[4]}:53 -m
     ipvsadm -A -u [${SERVICE[6]}]:53 -s rr
     ipvsadm -a -u [${SERVICE[6]}]:53 -r [${REMOTE[6]}]:53 -m
     iptables -t nat -A POSTROUTING -s ${SERVICE[4]} -j MASQUERADE
     ip6tables -t nat -A POSTROUTING -s ${SERVICE[6]} -j MASQUERADE`,
  );
  const words = ['serve-datagrams', REMOTE[4], '53', REMOTE[6], '53'];
  await lab.daemon(lab.remote, 'datagrams', await buildApp(), words).logged(/"serving":true/);
}

const scene = useScene({
  pods: [{ name: WEB }, { name: NEIGHBOUR, described: { labels: { app: NEIGHBOUR } } }],
  prepare: kubeProxy,
  agent: {
    interception: { outboundUdp: '53' },
    instances: [{ name: 'default', outbound: [...OUTBOUND], outboundUdp: OUTBOUND_UDP }],
  },
  proxy: OUTBOUND_UDP.flatMap((address) => ['--listen-udp', address]),
});

function ipvsadm(...words: readonly string[]): Promise<string> {
  return runIn(scene.lab.node, 'ipvsadm', words);
}

/** What of the enrolled pod has left the node since the beginning. */
async function direct(): Promise<unknown[]> {
  const { ips } = scene.pod(WEB);
  return (await scene.uplink.flows()).filter((flow) =>
    [ips[4], ips[6]].some((ip) => JSON.stringify(flow).includes(ip)),
  );
}

async function dial(pod: LabPod, family: 4 | 6, timeoutMs?: number): Promise<Record<string, unknown>> {
  return reply(await pod.app(['dial', SERVICE[family], '80'], timeoutMs));
}

describe.each([4, 6] as const)('IPv%i', (family) => {
  it('the proxy sees the service that the pod dialled, and nothing passes it by', async () => {
    const dialled = await dial(scene.pod(WEB), family);
    expect(dialled).toMatchObject({ ok: true });
    const bracket = (ip: string) => (family === 6 ? `[${ip}]` : ip);
    const flow = await scene.proxy.flowFrom(`${bracket(scene.pod(WEB).ips[family])}:${dialled.localPort}`);
    expect(flow).toMatchObject({ originalDst: `${bracket(SERVICE[family])}:80`, workload: `default/${WEB}` });
    // The proxy's own connection goes by kube-proxy to an endpoint, under the node's address.
    expect(JSON.stringify(dialled.server)).not.toContain(scene.pod(WEB).ips[family]);
    expect(await direct()).toEqual([]);
  });

  it('the same of a datagram, whose answer bears the service’s address', async () => {
    const asked = reply(await scene.pod(WEB).app(['ask-datagram', SERVICE[family], '53']));
    expect(asked).toMatchObject({ ok: true });
    const bracket = (ip: string) => (family === 6 ? `[${ip}]` : ip);
    const flow = await scene.proxy.flowFrom(`${bracket(scene.pod(WEB).ips[family])}:${asked.localPort}`);
    expect(flow).toMatchObject({
      protocol: 'udp',
      originalDst: `${bracket(SERVICE[family])}:53`,
      workload: `default/${WEB}`,
    });
    expect(asked.peer).not.toContain(scene.pod(WEB).ips[family]);
  });

  it('a pod that is not enrolled has its services as before', async () => {
    const capture = await Capture.start(scene.lab, scene.lab.node, 'uplink', POD_TCP);
    const pod = scene.pod(NEIGHBOUR);
    expect(await dial(pod, family)).toMatchObject({ ok: true });
    expect(await capture.flows()).not.toEqual([]);
    await capture.stop();
  });
});

it(`${CONNECTIONS} connections to a service, one after the other, each by the proxy`, async () => {
  const before = (await scene.agent.packets(WEB)).FLOW_STARTED ?? 0;
  const { stdout } = await scene
    .pod(WEB)
    .app(['connects', SERVICE[4], '80', String(CONNECTIONS), '1'], 120_000);
  expect(JSON.parse(stdout.trim().split('\n').at(-1) ?? '{}')).toMatchObject({ failures: 0 });
  expect(await direct()).toEqual([]);
  expect(((await scene.agent.packets(WEB)).FLOW_STARTED ?? 0) - before).toBe(CONNECTIONS);
});

describe('our service, taken away', () => {
  it('is put back, and until then nothing goes past the proxy', async () => {
    process.kill(scene.agent.pid, 'SIGSTOP');
    try {
      await ipvsadm('-D', '-f', '64');
      await ipvsadm('-D', '-f', '64', '-6');
      const pod = scene.pod(WEB);
      for (const family of [4, 6] as const) {
        const dialled = await dial(pod, family, 2_000).catch(() => ({ ok: false }));
        expect(dialled).toMatchObject({ ok: false });
      }
    } finally {
      process.kill(scene.agent.pid, 'SIGCONT');
    }
    await waitFor('the agent to put it back', async () =>
      (await ipvsadm('--save', '-n')).includes('-f 64 -6 -r'),
    );
    for (const family of [4, 6] as const) {
      expect(await dial(scene.pod(WEB), family)).toMatchObject({ ok: true });
    }
    expect(await direct()).toEqual([]);
  });

  it('again and again: DEGRADED, with the reason', async () => {
    const timer = setInterval(() => void ipvsadm('-D', '-f', '64').catch(() => undefined), 300);
    try {
      await scene.agent.reaches(WEB, 'DEGRADED');
      const reason = (await scene.agent.workload(WEB))?.interception.reason;
      expect(reason).toMatch(/IPVS service for IPv4|ipvsadm/);
    } finally {
      clearInterval(timer);
    }
    await scene.agent.reaches(WEB, 'INTERCEPTED');
  });
});

it('cleanup takes our services away, and no other', async () => {
  await scene.agent.stop();
  const { code, stdout } = await scene.agent.cli('cleanup');
  expect(code).toBe(0);
  expect(stdout).toContain('IPVS service for IPv4');
  expect(stdout).toContain('IPVS service for IPv6');
  const left = await ipvsadm('--save', '-n');
  expect(left).not.toContain('-f 64');
  expect(left).toContain(`-A -t ${SERVICE[4]}:80`);
});
