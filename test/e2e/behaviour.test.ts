/** What a user of the node would notice: without a listener, before the enrolment, with other proxies, with DNAT. */

import { appendFileSync, readFileSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { beforeAll, beforeEach, describe, expect, it } from 'vitest';
import type { WatchLine } from '../../src/api/messages.js';
import type { Containerd } from '../lab/containerd.js';
import { Daemon, inNetns, run, runIn, script, waitFor } from '../lab/exec.js';
import { buildApp } from '../lab/image.js';
import { type Lab, REMOTE } from '../lab/lab.js';
import { patient } from '../lab/patience.js';
import { type LabPod, reply } from '../lab/pod.js';
import { enrolled, type TestAgent, type TestProxy } from './agent.js';
import { useScene } from './scene.js';

/** Where each kind of proxy listens; `nobody` is where nothing does. */
const INSTANCES = [
  { name: 'nginx', apps: ['behind-nginx'], outbound: '0.0.0.0:15010' },
  { name: 'haproxy', apps: ['behind-haproxy'], outbound: '127.0.0.1:15011' },
  { name: 'shards', apps: ['behind-shards'], outbound: '127.0.0.1:15014' },
  { name: 'taken', apps: ['behind-taken'], outbound: '[::]:15015' },
  { name: 'nobody', apps: ['behind-nobody'], outbound: '127.0.0.1:15012' },
  { name: 'dual', apps: ['behind-dual'], outbound: '[::]:15013' },
  { name: 'default', outbound: ['127.0.0.1:15001', '[::1]:15001'] },
];

/** A SYN that is lost comes again after a second: what is promised within milliseconds took no second try. */
const AT_ONCE_MS = patient(200);

const scene = useScene({
  pods: [
    { name: 'web', runtime: 'runc' },
    { name: 'on-bridge', runtime: 'runc', topology: 'bridge' },
    { name: 'neighbour', runtime: 'runc', topology: 'bridge', described: { labels: {} } },
  ],
  cri: { topology: 'ptp', settings: { serviceAccount: 'default' } },
  agent: { instances: INSTANCES },
});

let lab: Lab;
let containerd: Containerd;
let agent: TestAgent;
let proxy: TestProxy;
let web: LabPod;
let neighbour: LabPod;
let described: readonly object[];
const pods = new Map<string, LabPod>();

beforeAll(async () => {
  ({ lab, agent, proxy, described } = scene);
  containerd = await scene.containerd('ptp');
  [web, neighbour] = [scene.pod('web'), scene.pod('neighbour')];
  pods.set('on-bridge', scene.pod('on-bridge'));
});

/** A runc pod whose app is `app`, intercepted. */
async function podOf(app: string, annotations: Record<string, string> = {}): Promise<LabPod> {
  const name = `${app}-${pods.size}`;
  const pod = await containerd.runPod({ name, runtime: 'runc', labels: enrolled(app), annotations });
  pods.set(name, pod);
  await agent.reaches(name, 'INTERCEPTED');
  return pod;
}

/** What has left the node from the pod's own address, IPv4 and IPv6: nothing, where all went through a proxy. */
async function pastTheProxy({ ips }: LabPod): Promise<string[]> {
  const flows = await scene.uplink.flows();
  return flows.filter((flow) => flow.startsWith(`${ips[4]}:`) || flow.startsWith(`[${ips[6]}]:`));
}

/** The server behind saw somebody, and not the pod. */
function expectNotSeen(dialled: Record<string, unknown>, ip: string): void {
  expect(dialled.server).toEqual(expect.objectContaining({ peer: expect.any(String) }));
  expect(JSON.stringify(dialled.server)).not.toContain(ip);
}

async function adopted(instance: string): Promise<void> {
  await waitFor(`the listener of ${instance} to be adopted`, async () =>
    (await agent.client.status()).listeners.some(
      (listener) => listener.instance === instance && listener.adopted,
    ),
  );
}

describe('without a listener', () => {
  it('closed: the app is refused at once, counted, and told apart in flows', async () => {
    const pod = await podOf('behind-nobody');
    const told: WatchLine[] = [];
    const follow = new AbortController();
    const opened = new Promise<void>((resolve) => {
      (async () => {
        for await (const line of agent.client.followFlows(follow.signal, resolve)) {
          told.push(line);
        }
      })().catch((error: unknown) => told.push(error as WatchLine));
    });
    await opened;
    const refused = reply(await pod.app(['dial', REMOTE[4], '80']));
    expect(refused).toMatchObject({ ok: false, failed: 'connect', error: 'ECONNREFUSED' });
    expect(Number(refused.ms)).toBeLessThan(AT_ONCE_MS);
    expect(await pastTheProxy(pod)).toEqual([]);
    expect(await agent.packets(pod.name)).toMatchObject({ NO_LISTENER_RESET: 1 });
    await waitFor('the refusal among the flows', () => told.length > 0);
    follow.abort();
    expect(told).toMatchObject([{ verdict: 'NO_LISTENER_RESET', podName: pod.name, dst: `${REMOTE[4]}:80` }]);
  });

  it('a family without a listener of its own is refused as well, and status says so', async () => {
    const pod = await podOf('behind-nobody');
    const refused = reply(await pod.app(['dial', REMOTE[6], '80']));
    expect(refused).toMatchObject({ ok: false, error: 'ECONNREFUSED' });
    expect(Number(refused.ms)).toBeLessThan(AT_ONCE_MS);
    expect(await pastTheProxy(pod)).toEqual([]);
    const { listeners } = await agent.client.status();
    const six = listeners.find(({ instance, family }) => instance === 'nobody' && family === 6);
    expect(six).toMatchObject({ adopted: false, failure: 'closed' });
    expect((await agent.cli('status')).stdout).toMatch(/nobody +outbound +IPv6 .*NO .*are reset/);
  });

  it('open: the app gets straight through, and it is counted', async () => {
    const pod = await podOf('behind-nobody', { 'nodesentry.io/failure': 'open' });
    const dialled = reply(await pod.app(['dial', REMOTE[4], '80']));
    expect(dialled).toMatchObject({ ok: true, server: { peer: `${pod.ips[4]}:${dialled.localPort}` } });
    expect(await agent.packets(pod.name)).toMatchObject({ NO_LISTENER_OPEN: 1 });
    expect((await agent.packets(pod.name)).NO_LISTENER_RESET ?? 0).toBe(0);
    expect(await pastTheProxy(pod), 'what the capture shows of a pod that gets through').not.toEqual([]);
  });

  it('a proxy that dies and comes back is adopted again without being announced', async () => {
    await proxy.stop('SIGKILL');
    await waitFor(
      'connections to be refused',
      async () => !reply(await web.app(['dial', REMOTE[4], '80'])).ok,
    );
    await proxy.start();
    await adopted('default');
    const dialled = reply(await web.app(['dial', REMOTE[4], '80']));
    expect(dialled).toMatchObject({ ok: true });
    expectNotSeen(dialled, web.ips[4]);
    await proxy.flowFrom(`${web.ips[4]}:${dialled.localPort}`);
    expect(await pastTheProxy(web)).toEqual([]);
  });
});

describe('a connection that was open before its pod was enrolled', () => {
  it('goes on untouched, while a new one is intercepted', async () => {
    const control = join(lab.directory, 'control');
    writeFileSync(control, '');
    const app = await buildApp();
    // Runs on the host's files in the pod's namespace, as a hostPath volume would let it.
    const plain = await containerd.runPod({ name: 'plain', runtime: 'runc', labels: { app: 'plain' } });
    const held = new Daemon('hold', join(lab.directory, 'hold.log'), 'nsenter', [
      `--net=${plain.netns}`,
      '--',
      app,
      'hold',
      REMOTE[4],
      '80',
      control,
    ]);
    lab.cleanup.add('hold', () => held.stop());
    await held.logged(/"localPort"/);
    appendFileSync(control, '.');
    await held.logged(/"request":0/);

    await agent.reaches('plain', 'NOT_ENROLLED');
    await agent.stop();
    agent.writeConfig({ interception: { enrol: 'all' } });
    await agent.start();
    await agent.reaches('plain', 'INTERCEPTED');
    appendFileSync(control, '..');
    await held.logged(/"request":2/);
    expect(readFileSync(held.logPath, 'utf8')).not.toContain('"ok":false');
    expect((await agent.packets('plain')).OLDER_CONNECTION).toBeGreaterThan(0);

    const dialled = reply(await plain.app(['dial', REMOTE[4], '80']));
    expect(await proxy.flowFrom(`${plain.ips[4]}:${dialled.localPort}`)).toMatchObject({
      originalDst: '10.200.1.1:80',
      spiffeId: 'spiffe://cluster.local/ns/default/sa/default',
    });
    await agent.stop();
    agent.writeConfig({});
    agent.writePods(described);
    await agent.start();
    await agent.reaches('web', 'INTERCEPTED');
  });
});

describe('beside a kube-proxy-style DNAT rule', () => {
  const SERVICE = '10.96.0.10';

  beforeEach(async () => {
    // As on any node with a default route: the service address itself leads nowhere in particular.
    await runIn(lab.node, 'ip', ['route', 'replace', `${SERVICE}/32`, 'via', '10.199.0.2']);
    await runIn(lab.node, 'nft', ['-f', '-'], {
      input: `table ip kube-like {
        chain prerouting { type nat hook prerouting priority dstnat; ip daddr ${SERVICE} tcp dport 8080 dnat to ${REMOTE[4]}:80; }
        chain output { type nat hook output priority -100; ip daddr ${SERVICE} tcp dport 8080 dnat to ${REMOTE[4]}:80; }
      }`,
    });
    return () => runIn(lab.node, 'nft', ['delete', 'table', 'ip', 'kube-like']);
  });

  it('the proxy sees the address that the app dialled', async () => {
    const dialled = reply(await web.app(['dial', SERVICE, '8080']));
    expect(dialled).toMatchObject({ ok: true });
    expect(await proxy.flowFrom(`${web.ips[4]}:${dialled.localPort}`)).toMatchObject({
      originalDst: `${SERVICE}:8080`,
    });
  });
});

/** Passes on to the original destination. */
function haproxyConfig(bind: string, threads = 1): string {
  return `global
  maxconn 4000
  nbthread ${threads}
defaults
  mode tcp
  timeout connect 5s
  timeout client 30s
  timeout server 30s
frontend out
  bind ${bind}
  default_backend original
backend original
  server dst *:0
`;
}

describe('other proxies, none of them told anything', () => {
  it('nginx, which has no transparent mode, is adopted and sees both addresses', async () => {
    const config = join(lab.directory, 'nginx.conf');
    writeFileSync(
      config,
      `daemon off; pid ${lab.directory}/nginx.pid; error_log stderr; events {}
       http { access_log off; client_body_temp_path ${lab.directory}/ngx1; proxy_temp_path ${lab.directory}/ngx2;
         fastcgi_temp_path ${lab.directory}/ngx3; uwsgi_temp_path ${lab.directory}/ngx4; scgi_temp_path ${lab.directory}/ngx5;
         server { listen 0.0.0.0:15010; return 200 "$remote_addr:$remote_port $server_addr:$server_port\\n"; } }`,
    );
    lab.daemon(lab.node, 'nginx', 'nginx', ['-c', config, '-e', 'stderr']);
    const pod = await podOf('behind-nginx');
    await adopted('nginx');
    const said = await runInPod(pod, ['curl', '-sS', '-m', '5', `http://${REMOTE[4]}:80/`]);
    expect(said).toMatch(
      new RegExp(`^${pod.ips[4].replaceAll('.', '\\.')}:\\d+ ${REMOTE[4].replaceAll('.', '\\.')}:80\\n$`),
    );
    expect(await pastTheProxy(pod)).toEqual([]);
  });

  it('whoever has taken the address of a proxy without being its owner gets no connection of a pod', async () => {
    const words = ['--reuid=65534', '--regid=65534', '--clear-groups', await buildApp(), 'serve', '15015'];
    const server = lab.daemon(lab.node, 'taken', 'setpriv', words);
    await server.logged(/"serving":true/);
    const pod = await podOf('behind-taken');
    const listener = await waitFor('the refusal to be told', async () => {
      const { listeners } = await agent.client.status();
      return listeners.find(({ instance, refused }) => instance === 'taken' && refused !== undefined);
    });
    expect(listener).toMatchObject({
      adopted: false,
      refused: expect.stringContaining('"owner: {uid: 65534}"'),
    });
    expect(reply(await pod.app(['dial', REMOTE[4], '80']))).toMatchObject({ ok: false });
    expect(server.log()).not.toContain(pod.ips[4]);
    expect(await pastTheProxy(pod)).toEqual([]);
    const { stdout } = await agent.cli('status');
    expect(stdout).toMatch(/taken +outbound +IPv4 +\[::\]:15015 +NO +are reset .*held by uid 65534/);
  });

  it('HAProxy with a socket for each of four threads takes every connection', async () => {
    const config = join(lab.directory, 'haproxy-shards.cfg');
    writeFileSync(config, haproxyConfig('127.0.0.1:15014 shards 4', 4));
    lab.daemon(lab.node, 'haproxy-shards', 'haproxy', ['-db', '-f', config]);
    const pod = await podOf('behind-shards');
    await adopted('shards');
    const { listeners } = await agent.client.status();
    expect(listeners.find(({ instance, family }) => instance === 'shards' && family === 4)).toMatchObject({
      sockets: { all: 4, transparent: 4 },
    });
    const dialled = reply(await pod.app(['connects', REMOTE[4], '80', '60', '1000'], 60_000));
    expect(dialled).toMatchObject({ ok: true, done: 60, failures: 0 });
    expect(await pastTheProxy(pod)).toEqual([]);
  });

  it('HAProxy passes on to the original destination', async () => {
    const config = join(lab.directory, 'haproxy.cfg');
    writeFileSync(config, haproxyConfig('127.0.0.1:15011'));
    lab.daemon(lab.node, 'haproxy', 'haproxy', ['-db', '-f', config]);
    const pod = await podOf('behind-haproxy');
    await adopted('haproxy');
    const fetched = reply(await pod.app(['fetch', REMOTE[4], '80', '5000000']));
    expect(fetched).toMatchObject({ ok: true, bytes: 5_000_000 });
    expect(await pastTheProxy(pod)).toEqual([]);
  });

  it('one dual-stack listener serves both families', async () => {
    const server = lab.daemon(lab.node, 'dual', await buildApp(), ['serve', '15013']);
    await server.logged(/"serving":true/);
    const pod = await podOf('behind-dual');
    await adopted('dual');
    for (const family of [4, 6] as const) {
      const dialled = reply(await pod.app(['dial', REMOTE[family], '80']));
      const bracket = (ip: string) => (family === 6 ? `[${ip}]` : ip);
      expect(dialled.server).toEqual({
        peer: `${bracket(pod.ips[family])}:${dialled.localPort}`,
        local: `${bracket(REMOTE[family])}:80`,
      });
    }
    // The remote would have said the same of both addresses.
    expect(await pastTheProxy(pod)).toEqual([]);
  });

  /** With the host's tools in the pod's namespace. */
  function runInPod(pod: LabPod, words: readonly string[]): Promise<string> {
    return run('nsenter', [`--net=${pod.netns}`, '--', ...words]);
  }
});

describe('on a bridge with br_netfilter', () => {
  it.each([4, 6] as const)('IPv%i: a flow to a pod on the same bridge is intercepted too', async (family) => {
    const app = await buildApp();
    const [command, args] = ['nsenter', [`--net=${neighbour.netns}`, '--', app, 'serve', '8080']] as const;
    const server = new Daemon('neighbour', join(lab.directory, 'neighbour.log'), command, args);
    try {
      await server.logged(/"serving":true/);
      const from = pods.get('on-bridge') ?? web;
      const dialled = reply(await from.app(['dial', neighbour.ips[family], '8080']));
      expect(dialled).toMatchObject({ ok: true });
      const bracket = (ip: string) => (family === 6 ? `[${ip}]` : ip);
      const flow = await proxy.flowFrom(`${bracket(from.ips[family])}:${dialled.localPort}`);
      expect(flow).toMatchObject({ originalDst: `${bracket(neighbour.ips[family])}:8080` });
    } finally {
      await server.stop();
    }
  });
});

describe('under SYN cookies', () => {
  it.each(['web', 'on-bridge'])('connections of %s are still intercepted', async (name) => {
    await runIn(lab.node, 'sysctl', ['-qw', 'net.ipv4.tcp_syncookies=2']); // always, not only in a flood
    try {
      const pod = pods.get(name) ?? web;
      for (const family of [4, 6] as const) {
        const dialled = reply(await pod.app(['dial', REMOTE[family], '80']));
        expect(dialled).toMatchObject({ ok: true });
        expectNotSeen(dialled, pod.ips[family]);
        const ip = family === 6 ? `[${pod.ips[6]}]` : pod.ips[4];
        await proxy.flowFrom(`${ip}:${dialled.localPort}`);
      }
      expect(await pastTheProxy(pod)).toEqual([]);
      expect((await agent.packets(name)).SYN_COOKIE).toBeGreaterThan(0);
    } finally {
      await runIn(lab.node, 'sysctl', ['-qw', 'net.ipv4.tcp_syncookies=1']);
    }
  });
});

describe('ports in TIME_WAIT', () => {
  it('a pod may dial again from the port of a connection that the proxy closed first', async () => {
    // gVisor: Linux sends its SYN again within milliseconds of the reset and so hides what this is about.
    const pod = await containerd.runPod({ name: 'redial', runtime: 'runsc', labels: enrolled('redial') });
    await agent.reaches('redial', 'INTERCEPTED');
    const again = reply(await pod.app(['reuse', REMOTE[4], '80', '33333', '5']));
    expect(again).toMatchObject({ ok: true, failures: 0 });
    expect(Number(again.slowestMs)).toBeLessThan(AT_ONCE_MS);
    expect(proxy.flows().filter(({ peer }) => peer === `${pod.ips[4]}:33333`)).toHaveLength(5);
    expect(await pastTheProxy(pod)).toEqual([]);
  });
});

describe('pods that cannot be intercepted', () => {
  it('are REFUSED, each with its reason', async () => {
    const netns = `nsl-${lab.id}-mac`;
    await script(
      undefined,
      `ip netns add ${netns}
       ip -n ${lab.node} link add mac0 link uplink type macvlan mode bridge
       ip -n ${lab.node} link set mac0 netns ${netns} name eth0`,
    );
    lab.cleanup.add(`netns ${netns}`, () => run('ip', ['netns', 'del', netns]));
    const labels = { 'nodesentry.io/intercept': 'enabled' };
    agent.writePods([
      ...described,
      {
        namespace: 'default',
        name: 'on-macvlan',
        uid: 'm',
        labels,
        ips: ['10.66.9.1'],
        netns: `/run/netns/${netns}`,
      },
      { namespace: 'default', name: 'on-host', uid: 'h', labels, hostNetwork: true },
    ]);
    expect((await agent.reaches('on-macvlan', 'REFUSED')).interception.reason).toContain('macvlan');
    expect((await agent.reaches('on-host', 'REFUSED')).interception.reason).toContain('HOST_NETWORK');
    agent.writePods(described);
  });
});

describe('who it is', () => {
  it('two pods on one address: both kept, AMBIGUOUS without a record, the recorded flow still named', async () => {
    const claim = {
      namespace: 'default',
      name: 'twin',
      uid: 'twin',
      ips: [web.ips[4]],
      interface: 'nowhere0',
    };
    agent.writePods([...described, claim]);
    await waitFor('the twin to be known', () => agent.workload('twin'));
    const dst = { ip: REMOTE[4], port: 80 };
    await expect(
      agent.client.resolve({ proto: 'tcp', src: { ip: web.ips[4], port: 1 }, dst }),
    ).rejects.toMatchObject({ code: 'AMBIGUOUS' });
    const dialled = reply(await web.app(['dial', REMOTE[4], '80']));
    expect(
      await agent.client.resolve({
        proto: 'tcp',
        src: { ip: web.ips[4], port: Number(dialled.localPort) },
        dst,
      }),
    ).toMatchObject({ workload: { podName: 'web' }, assurance: 'DATAPATH_RECORDED' });
    agent.writePods(described);
    await waitFor('the twin to be forgotten', async () => (await agent.workload('twin')) === undefined);
  });

  it('a pod that goes is taken out, and its flows resolve as TERMINATING', async () => {
    const pod = await podOf('short-lived');
    const [carried] = (await agent.workload(pod.name))?.interception.interfaces ?? [];
    expect(agent.endpoints()).toContain(carried?.ifindex);
    const dialled = reply(await pod.app(['dial', REMOTE[4], '80']));
    const query = {
      proto: 'tcp',
      src: { ip: pod.ips[4], port: Number(dialled.localPort) },
      dst: { ip: REMOTE[4], port: 80 },
    } as const;
    await pod.stop();
    await waitFor('the pod to be forgotten', async () => (await agent.workload(pod.name)) === undefined);
    await waitFor('its endpoint to go', () => !agent.endpoints().includes(carried?.ifindex ?? 0));
    expect(await agent.client.resolve(query)).toMatchObject({
      workload: { podName: pod.name, state: 'TERMINATING' },
    });
    // Who has the address now is not enrolled, and may have dialled from the same port.
    const heir = { namespace: 'default', name: 'heir', uid: 'heir', ips: [pod.ips[4]], interface: 'none' };
    agent.writePods([...described, heir]);
    await waitFor('the heir to be known', async () => (await agent.workload('heir')) !== undefined);
    await expect(agent.client.resolve(query)).rejects.toMatchObject({ code: 'ASSURANCE_TOO_LOW' });
    expect(await agent.client.resolve({ ...query, minAssurance: 'IP_ONLY' })).toMatchObject({
      workload: { podName: 'heir', state: 'LIVE' },
      assurance: 'IP_ONLY',
    });
    agent.writePods(described);
    await waitFor('the heir to be forgotten', async () => (await agent.workload('heir')) === undefined);
  });

  it('a bad edit of the static file is refused with its line, and the last good state stays', async () => {
    writeFileSync(
      agent.podsPath,
      'pods:\n  - {namespace: default, name: x, uid: x, ips: [not-an-ip], interface: a}\n',
    );
    await waitFor('the edit to be refused', async () =>
      (await agent.client.status()).sources.find(({ name }) => name === 'static')?.lastError.includes(':2'),
    );
    expect(await agent.workload('on-bridge')).toMatchObject({ interception: { state: 'INTERCEPTED' } });
    agent.writePods(described);
  });

  it('flows --follow prints flows as they happen', async () => {
    const words = ['--run-dir', agent.runDir, 'flows', '--follow', '--json'];
    const follow = new Daemon(
      'follow',
      join(lab.directory, 'follow.log'),
      ...inNetns(lab.node, join(import.meta.dirname, '../../bin/nodesentry'), words),
    );
    try {
      await waitFor('a flow to be printed', async () => {
        await web.app(['dial', REMOTE[4], '80']);
        return follow.log().includes('"podName":"web"');
      });
      expect(follow.log()).toContain('FLOW_STARTED');
    } finally {
      await follow.stop();
    }
  });
});
