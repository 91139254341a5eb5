/** `nodesentry api-check`, as anybody runs it on a node: all is as promised, and what is not is found. */

import { createServer, request } from 'node:http';
import { join } from 'node:path';
import { expect, it } from 'vitest';
import type { Outcome } from '../../src/conformance/check.js';
import type { Output } from '../lab/exec.js';
import { REMOTE } from '../lab/lab.js';
import { useScene } from './scene.js';

const scene = useScene({
  pods: [{ name: 'web' }, { name: 'db', topology: 'bridge' }, { name: 'plain', described: { labels: {} } }],
  inbound: true,
});

const outcomesOf = ({ stdout }: Output) => JSON.parse(stdout) as readonly Outcome[];

it('everything passes, and nothing is left out but what needs a listener', async () => {
  for (const family of [4, 6] as const) {
    await scene.expectAtProxy(scene.pod('web'), family);
    await scene.expectAtProxy(scene.pod('db'), family);
  }
  const done = await scene.agent.cli('api-check', '--json');
  expect(done.stderr).toBe('');
  const outcomes = outcomesOf(done);
  expect(outcomes.filter(({ result }) => result !== 'pass')).toMatchObject([
    { id: 'getsockopt', result: 'not applicable' },
  ]);
  expect(outcomes.length).toBeGreaterThan(15);
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
