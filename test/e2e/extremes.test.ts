/** Names, labels and annotations at their limits and beyond, and a node with as many pods and instances as it can have. */

import { writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import { createNetwork } from '../lab/cni.js';
import { inNetns, run, tryRun, waitFor } from '../lab/exec.js';
import { buildApp } from '../lab/image.js';
import { Lab, REMOTE } from '../lab/lab.js';
import { ipBatch, nodeEnd, podEnd } from '../lab/namespaces.js';
import { type PlainPod, runPlainPod } from '../lab/plain.js';
import { reply } from '../lab/pod.js';
import { staticPod, TestAgent, TestProxy } from './agent.js';

const INTERCEPT = { 'nodesentry.io/intercept': 'enabled' };

/** A line end, an escape sequence, the end of a Prometheus label, a JSON string's end, a right-to-left override. */
const HOSTILE = 'a\n{"level":"error","msg":"forged"}\n\u001b[31m\u0007\u202e"} 1\nnodesentry_forged 1\\';
const UNICODE = 'żółć-наука-日本語-🦭';

describe('names, labels and annotations', () => {
  let lab: Lab;
  let agent: TestAgent;
  let proxy: TestProxy;
  let pods: readonly PlainPod[];
  const longNamespace = `n${'-'.repeat(61)}s`;
  const longName = `p${'o.d-'.repeat(62)}long`.slice(0, 253);
  const longLabel = `v${'_'.repeat(61)}l`;
  const described: Record<string, unknown>[] = [];

  beforeAll(async () => {
    lab = await Lab.create();
    await lab.serve();
    agent = new TestAgent(lab, { sources: { static: { file: 'pods.yaml' } } });
    const network = createNetwork(lab, 'ptp');
    const [long, hostile] = [
      await runPlainPod(lab, network, 'long'),
      await runPlainPod(lab, network, 'hostile'),
    ];
    pods = [long, hostile];
    described.push(
      {
        ...staticPod(long),
        namespace: longNamespace,
        name: longName,
        serviceAccount: `s${'a'.repeat(251)}t`,
        labels: { ...INTERCEPT, app: longLabel, 'example.com/unicode': UNICODE },
        annotations: {
          'example.com/large': 'x'.repeat(200 << 10),
          'nodesentry.io/failure': 'y'.repeat(200 << 10),
        },
      },
      {
        ...staticPod(hostile),
        labels: { ...INTERCEPT, app: HOSTILE, [`example.com/${HOSTILE}`]: HOSTILE },
        annotations: {
          'nodesentry.io/failure': HOSTILE,
          'nodesentry.io/outbound': UNICODE,
          [HOSTILE]: HOSTILE,
        },
        runtimeHandler: HOSTILE,
        runtime: 'unknown',
        sandboxId: HOSTILE,
      },
    );
    agent.writePods(described);
    await agent.start();
    proxy = new TestProxy(lab, agent);
    await proxy.start();
    await agent.adopted(2);
  }, 60_000);

  afterAll(async () => {
    await lab?.close();
  });

  it('of the longest kind, in Unicode and with control characters: intercepted, and named as they are', async () => {
    for (const [index, pod] of pods.entries()) {
      const { namespace, name, labels } = described[index] as {
        namespace: string;
        name: string;
        labels: object;
      };
      await agent.reaches(name, 'INTERCEPTED');
      const { localPort } = reply(await pod.app(['dial', REMOTE[4], '80']));
      const src = `${pod.ips[4]}:${localPort}`;
      expect(await proxy.flowFrom(src)).toMatchObject({ originalDst: `${REMOTE[4]}:80` });
      const { stdout } = await agent.cli('resolve', '--json', '--src', src, '--dst', `${REMOTE[4]}:80`);
      const { workload } = JSON.parse(stdout) as { workload: object };
      expect(workload).toMatchObject({ namespace, podName: name, labels });
    }
  });

  it('one line for each pod in `nodesentry pods`, none of them endless, and nothing that a terminal obeys', async () => {
    const { stdout } = await agent.cli('pods');
    const lines = stdout.trimEnd().split('\n');
    expect(lines).toHaveLength(1 + pods.length);
    for (const line of lines) {
      expect(line).not.toMatch(/[\p{Cc}\p{Cf}\p{Zl}\p{Zp}]/u);
      expect(line.length).toBeLessThan(2_000);
    }
    expect(stdout).toMatch(/nodesentry\.io\/failure: expected closed or open, got "yyy/);
    expect((await agent.cli('status')).stdout.replaceAll('\n', '')).not.toMatch(/[\p{Cc}\p{Cf}]/u);
  });

  it('each line of the log is one of our own, and of the metrics one that a scraper can read', async () => {
    for (const line of agent.log().trim().split('\n')) {
      expect(JSON.parse(line)).toMatchObject({
        pid: expect.any(Number),
        msg: expect.not.stringContaining('forged'),
      });
      expect(line.length).toBeLessThan(10_000);
    }
    const socket = join(agent.runDir, 'http.sock');
    const metrics = await run('curl', ['-sS', '--unix-socket', socket, 'http://localhost/metrics']);
    const sample = /^nodesentry_(?!forged)\w+(\{(\w+="([^"\\\n]|\\["\\n])*",?)*\})? [-+.\deINFNa]+$/;
    for (const line of metrics.split('\n').filter((text) => text !== '' && !text.startsWith('#'))) {
      expect(line).toMatch(sample);
    }
    expect(metrics).toContain(`pod="${longName}"`);
  });

  it.each([
    ['name', 'with control characters and line ends', HOSTILE],
    ['name', 'with an escape sequence', 'a\u001b[31m'],
    ['name', 'of 254 characters', 'p'.repeat(254)],
    ['namespace', 'in Unicode', UNICODE],
    ['namespace', 'of 64 characters', 'n'.repeat(64)],
    ['namespace', 'of two dots', '..'],
    ['serviceAccount', 'with a query', 'web?as=admin'],
    ['uid', 'with a control character', 'u\u0007'],
    ['netns', 'with a line end', '/run/netns/a\nb'],
  ])(
    'a %s %s: the file is refused in a line that names the field, and what was stays',
    async (field, _what, value) => {
      const logged = agent.log().length;
      agent.writePods([...described, { ...described[1], uid: 'another', [field]: value }]);
      const { lastError } = await waitFor('the file to be refused', async () => {
        const [source] = (await agent.client.status()).sources;
        return source?.lastError === '' || source === undefined ? undefined : source;
      });
      expect(lastError).toMatch(
        new RegExp(`^[^\n]*pods\\.yaml:\\d+: pods\\[2\\]\\.${field}: expected [^\\p{Cc}]*$`, 'u'),
      );
      expect(lastError.length).toBeLessThan(1_000);
      expect(
        agent
          .log()
          .slice(logged)
          .match(/file refused/g),
      ).toHaveLength(1);
      expect((await agent.client.workloads()).workloads).toHaveLength(pods.length);
      agent.writePods(described);
      await waitFor(
        'the file to be taken',
        async () => (await agent.client.status()).sources[0]?.lastError === '',
      );
    },
  );
});

const INSTANCES = 64;
const PODS = 250;

interface SmallPod {
  readonly name: string;
  readonly netns: string;
  readonly ip: string;
  readonly instance: number;
}

describe(`${PODS} pods of ${INSTANCES} instances`, () => {
  let lab: Lab;
  let agent: TestAgent;
  let pods: readonly SmallPod[];

  beforeAll(async () => {
    lab = await Lab.create();
    const port = (index: number) => 20_000 + index;
    const indices = Array.from({ length: INSTANCES }, (_, index) => index);
    agent = new TestAgent(lab, {
      sources: { static: { file: 'pods.yaml' } },
      instances: indices.map((index) => ({
        name: `instance-${index}`,
        apps: [`app-${index}`],
        outbound: `127.0.0.1:${port(index)}`,
      })),
    });
    // Says whose listener it is, and whom it has seen.
    const listeners = join(lab.directory, 'listeners.mjs');
    writeFileSync(
      listeners,
      `import { createServer } from 'node:net';
       for (let index = 0; index < ${INSTANCES}; index += 1) {
         createServer((socket) => socket.once('data', () => socket.end(JSON.stringify(
           { instance: index, peer: socket.remoteAddress, dialled: socket.localAddress + ':' + socket.localPort }) + '\\n'))
           .on('error', () => undefined)).listen(20000 + index, '127.0.0.1');
       }
       console.log('listening');`,
    );
    await lab.daemon(lab.node, 'listeners', process.execPath, [listeners]).logged(/listening/);
    pods = await smallPods(lab);
    agent.writePods(
      pods.map(({ name, netns, ip, instance }) => ({
        namespace: 'default',
        name,
        uid: name,
        labels: { ...INTERCEPT, app: `app-${instance}` },
        ips: [ip],
        netns: `/run/netns/${netns}`,
      })),
    );
    await agent.start();
  }, 60_000);

  afterAll(async () => {
    await lab?.close();
  }, 60_000);

  it('each connection comes out at the listener of its own instance, and at no other', async () => {
    await agent.adopted(INSTANCES);
    await waitFor(
      'every pod to be intercepted',
      async () => (await agent.client.status()).endpoints.INTERCEPTED === PODS,
      20_000,
    );
    const app = await buildApp();
    const wrong: unknown[] = [];
    for (let from = 0; from < pods.length; from += 10) {
      await Promise.all(
        pods.slice(from, from + 10).map(async ({ name, netns, ip, instance }) => {
          const answer = reply(await tryRun(...inNetns(netns, app, ['dial', REMOTE[4], '80'])));
          const expected = { instance, peer: ip, dialled: `${REMOTE[4]}:80` };
          if (JSON.stringify(answer.server) !== JSON.stringify(expected)) {
            wrong.push({ name, expected, answer });
          }
        }),
      );
    }
    expect(wrong).toEqual([]);
  }, 40_000);
});

/** A namespace and a routed veth each; made together, for one by one they take a minute. */
async function smallPods(lab: Lab): Promise<SmallPod[]> {
  const made = Array.from({ length: PODS }, (_, index) => ({
    name: `pod-${index}`,
    netns: `nsl-${lab.id}-p${index}`,
    ip: `10.66.128.${index + 1}`,
    instance: index % INSTANCES,
  }));
  lab.cleanup.add('the namespaces of the pods', () =>
    ipBatch(
      undefined,
      made.map(({ netns }) => `netns del ${netns}`),
    ),
  );
  await ipBatch(
    undefined,
    made.map(({ netns }) => `netns add ${netns}`),
  );
  await ipBatch(
    lab.node,
    made.flatMap((pod, index) => nodeEnd({ ...pod, veth: `v${index}` })),
  );
  for (const { netns, ip } of made) {
    await ipBatch(netns, podEnd(ip));
  }
  return made;
}
