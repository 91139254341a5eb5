/** Names and QUIC of pods of every runtime: by the reference proxy, and by Envoy with examples/udp/envoy-http3.yaml. */

import { writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import { makeGeneration } from '../../src/webhook/certificates.js';
import { Containerd } from '../lab/containerd.js';
import { type Daemon, waitFor } from '../lab/exec.js';
import { Lab, REMOTE } from '../lab/lab.js';
import { MicroVms } from '../lab/microvm.js';
import { type LabPod, reply } from '../lab/pod.js';
import { RUNTIMES } from '../lab/runtimes.js';
import { OUTBOUND, staticPod, TestAgent, TestProxy } from './agent.js';
import { echo, exampleFor, spiffeId } from './http-app.js';

const ENVOY = join(import.meta.dirname, '../../.cache/bin/envoy');
const FAMILIES = [4, 6] as const;
const OUTBOUND_UDP = ['127.0.0.1:15053', '[::1]:15053'];
const NAME = 'shop.example';
const DAY_MS = 86_400_000;
const bracket = (ip: string) => (ip.includes(':') ? `[${ip}]` : ip);

let lab: Lab;
let agent: TestAgent;
let proxy: TestProxy;
let envoy: Daemon;
const pods = new Map<string, LabPod>();
const pod = (name: string) => pods.get(name) as LabPod;

async function nameServer(): Promise<void> {
  const daemon = lab.daemon(lab.remote, 'dnsmasq', 'dnsmasq', [
    ...['--keep-in-foreground', '--log-facility=-', '--log-queries', '--conf-file=/dev/null', '--user=root'],
    ...['--pid-file=', '--no-resolv', '--no-hosts', '--bind-interfaces'],
    ...[`--listen-address=${REMOTE[4]}`, `--listen-address=${REMOTE[6]}`],
    ...[`--address=/${NAME}/${REMOTE[4]}`, `--address=/${NAME}/${REMOTE[6]}`, '--local-ttl=600'],
  ]);
  await daemon.logged(/started, version/);
}

async function startEnvoy(): Promise<void> {
  const { certificate, key } = await makeGeneration(['shop.example'], Date.now(), DAY_MS);
  const [certificatePath, keyPath] = [join(lab.directory, 'tls.crt'), join(lab.directory, 'tls.key')];
  writeFileSync(certificatePath, certificate);
  writeFileSync(keyPath, key);
  const config = exampleFor(lab, agent, 'udp/envoy-http3.yaml', {
    '/etc/envoy/tls.crt': certificatePath,
    '/etc/envoy/tls.key': keyPath,
  });
  const words = ['-c', config, '--concurrency', '2', '--disable-hot-restart'];
  envoy = lab.daemon(lab.node, 'envoy', ENVOY, [...words, '--file-flush-interval-msec', '50']);
}

beforeAll(async () => {
  lab = await Lab.create();
  await nameServer();
  // Where Envoy goes on to, by HTTP.
  await echo(lab, 80);
  const containerd = await Containerd.start(lab, 'ptp');
  const microvms = new MicroVms(lab, 'ptp', containerd.network);
  agent = new TestAgent(lab, {
    sources: { static: { file: 'pods.yaml' }, cri: { endpoint: `unix://${containerd.socket}` } },
    interception: { outboundUdp: '53,443' },
    instances: [
      { name: 'quic', ports: '443', outboundUdp: ['127.0.0.1:443', '[::1]:443'] },
      { name: 'default', outbound: [...OUTBOUND], outboundUdp: OUTBOUND_UDP },
    ],
  });
  const started = RUNTIMES.map((runtime) =>
    runtime === 'rund' ? microvms.runPod({ name: runtime }) : containerd.runPod({ name: runtime, runtime }),
  );
  for (const one of await Promise.all(started)) {
    pods.set(one.name, one);
  }
  agent.writePods([...pods.values()].map((one) => staticPod(one)));
  await agent.start();
  proxy = new TestProxy(lab, agent);
  await proxy.start(...OUTBOUND_UDP.flatMap((address) => ['--listen-udp', address]));
  await startEnvoy();
  await agent.adopted(6);
  await Promise.all(RUNTIMES.map((name) => agent.reaches(name, 'INTERCEPTED')));
});

afterAll(() => lab?.close());

describe.each(RUNTIMES)('%s', (name) => {
  it.each(FAMILIES)(
    'IPv%i: looks up a name through the reference proxy, which knows who asks',
    async (family) => {
      const words = ['look-up', REMOTE[family], '53', NAME];
      const answer = reply(await pod(name).app(words, 60_000));
      expect(answer).toMatchObject({ ok: true, answers: 1, address: REMOTE[family] });
      const src = `${bracket(pod(name).ips[family])}:${answer.localPort}`;
      expect(await proxy.flowFrom(src)).toMatchObject({
        protocol: 'udp',
        originalDst: `${bracket(REMOTE[family])}:53`,
        workload: `default/${name}`,
        assurance: 'DATAPATH_RECORDED',
      });
    },
  );

  it.each(FAMILIES)(
    'IPv%i: asks by HTTP/3 through Envoy, which is told by the agent who asks',
    async (family) => {
      const url = `https://${bracket(REMOTE[family])}/`;
      const asked = await pod(name).app(['exec', '/bin/http3-client', '-insecure', '-q', url], 120_000);
      expect(asked).toMatchObject({ code: 0 });
      const line = new RegExp(
        `http3 spiffe=${spiffeId(name)} peer=\\S+ original=\\S*${REMOTE[family]}\\S*:443 status=200`,
      );
      await waitFor('its line in the access log', () => line.test(envoy.log()));
      const flows = await agent.client.flows(1_000);
      expect(flows).toContainEqual(
        expect.objectContaining({
          protocol: 'udp',
          dst: `${bracket(REMOTE[family])}:443`,
          name: NAME, // as it was looked up above
          podName: name,
          instance: 'quic',
          mode: 'INTERCEPTED',
        }),
      );
    },
  );
});
