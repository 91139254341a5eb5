/** `nodesentry api-check`, as anybody runs it on a node: all is as promised, and what is not is found. */

import { createServer, request } from 'node:http';
import { basename, join } from 'node:path';
import { expect, it } from 'vitest';
import type { Outcome } from '../../src/conformance/check.js';
import type { Output } from '../lab/exec.js';
import { REMOTE } from '../lab/lab.js';
import { useScene } from './scene.js';

const scene = useScene({
  pods: [{ name: 'web' }, { name: 'db', topology: 'bridge' }, { name: 'plain', described: { labels: {} } }],
  inbound: true,
});

/** Pods of the lab without a runtime are namespaces: this is what there is of them in /proc. */
function keepProcessIn(pod: string): void {
  const { netns } = scene.pod(pod);
  scene.lab.daemon(basename(netns ?? ''), `process-of-${pod}`, 'sleep', ['600']);
}

const outcomesOf = ({ stdout }: Output) => JSON.parse(stdout) as readonly Outcome[];

it('everything passes, and nothing is left out but what needs a listener', async () => {
  for (const family of [4, 6] as const) {
    await scene.expectAtProxy(scene.pod('web'), family);
    await scene.expectAtProxy(scene.pod('db'), family);
  }
  keepProcessIn('web');
  keepProcessIn('db');
  const done = await scene.agent.cli('api-check', '--json');
  expect(done.stderr).toBe('');
  const outcomes = outcomesOf(done);
  expect(outcomes.filter(({ result }) => result !== 'pass')).toMatchObject([
    { id: 'getsockopt', result: 'not applicable' },
  ]);
  expect(outcomes.length).toBeGreaterThan(20);
  expect(done.code).toBe(0);
  expect((await scene.agent.cli('api-check', '--fast')).stdout).toMatch(
    /^CHECK +RESULT +WHAT +WHY\nkey\.podUid +pass/,
  );
}, 60_000);

it('as the proxy of an instance it compares what the kernel says of connections', async () => {
  await scene.proxy.stop();
  await scene.agent.adopted(0);
  const checking = scene.agent.cli(
    'api-check',
    '--json',
    '--fast',
    '--getsockopt-listener',
    '127.0.0.1:15001',
  );
  await scene.agent.adopted(1);
  for (let i = 0; i < 4; i++) {
    await scene.pod('web').app(['dial', REMOTE[4], '80'], 10_000);
  }
  const outcomes = outcomesOf(await checking);
  expect(outcomes.filter(({ result }) => result === 'fail')).toEqual([]);
  expect(outcomes.find(({ id }) => id === 'getsockopt')).toMatchObject({ result: 'pass' });
}, 60_000);

/** In front of the agent's socket, with one text of each answer another. */
function spoiling(from: string | RegExp, to: string): Promise<string> {
  const path = join(scene.lab.directory, `spoiled-${Math.random().toString(36).slice(2)}.sock`);
  const server = createServer((asked, answer) => {
    const { url, method, headers } = asked;
    const socketPath = join(scene.agent.runDir, 'http.sock');
    const sent = request({ socketPath, path: url, method, headers }, (response) => {
      const { 'content-length': _, ...kept } = response.headers;
      answer.writeHead(response.statusCode ?? 500, kept);
      response.on('data', (part: Buffer) => answer.write(part.toString().replaceAll(from, to)));
      response.on('end', () => answer.end());
    });
    asked.pipe(sent);
    answer.on('close', () => sent.destroy());
  });
  scene.lab.cleanup.add(path, async () => {
    server.closeAllConnections();
    server.close();
  });
  return new Promise((resolve) => server.listen(path, () => resolve(path)));
}

it.each([
  ['another name', /"podUid":"[^"]*"/g, '"podUid":"another"', ['key.podUid', 'key.flow']],
  ['another assurance', 'DATAPATH_RECORDED', 'IP_ONLY', ['key.flow']],
  ['another reason', 'WORKLOAD_NOT_FOUND', 'AMBIGUOUS', ['reason.WORKLOAD_NOT_FOUND', 'batch.order']],
  ['no snapshot', '"SNAPSHOT"', '"HEARTBEAT"', ['watch.snapshot', 'watch.epoch']],
  ['another pod in the watch', '"type":"UPSERT"', '"type":"HEARTBEAT"', ['watch.same']],
  ['another generation', /"generation":1\b/g, '"generation":2', ['key.podUid', 'watch.same']],
  ['another instance', '"instance":"default"', '"instance":"other"', ['key.flow', 'key.address']],
  ['another direction', '"direction":"EGRESS"', '"direction":"INGRESS"', ['key.flow']],
  ['another field', '"detail":"src:', '"detail":"dst:', ['reason.KEY_INVALID']],
  ['another guard', 'HEADER_MISSING', 'KEY_INVALID', ['http.rules']],
  ['a path that is not there', '"/v1/status":', '"/v1/nothing":', ['http.openapi']],
  ['another app', /"app":"web","node"/g, '"app":"shop","node"', ['http.services']],
  ['another epoch', /"epoch":"[^"]{3}/g, '"epoch":"abc', ['status.same', 'watch.resume']],
])(
  '%s is found',
  async (_what, from, to, ids) => {
    const socket = await spoiling(from, to);
    const done = await scene.agent.cli('api-check', '--json', '--fast', '--http-socket', socket);
    expect(done.code).toBe(1);
    const failed = outcomesOf(done)
      .filter(({ result }) => result === 'fail')
      .map(({ id }) => id);
    expect(failed).toEqual(expect.arrayContaining(ids));
  },
  60_000,
);
