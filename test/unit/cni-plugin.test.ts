import { execFileSync, spawnSync } from 'node:child_process';
import { existsSync, mkdtempSync, readFileSync, rmSync, statSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterEach, beforeEach, describe, expect, test } from 'vitest';
import {
  AgentStandIn,
  answering,
  type Behaviour,
  type CniVersion,
  callPlugin,
  INTERCEPTED,
  PLUGIN,
  type PluginRun,
  POD,
  RESULTS,
  VERSIONS,
} from './cni-plugin-lab.js';

/** What starting a process may add to a promised time on a busy machine. */
const SLACK_MS = 500;

let folder: string;
let agents: AgentStandIn[];

beforeEach(() => {
  folder = mkdtempSync(join(tmpdir(), 'nodesentry-cni-'));
  agents = [];
});

afterEach(async () => {
  await Promise.all(agents.map((agent) => agent.close()));
  rmSync(folder, { recursive: true, force: true });
});

const socket = () => join(folder, 'cni.sock');

async function agent(behaviour: Behaviour): Promise<AgentStandIn> {
  const listening = await AgentStandIn.listen(socket(), behaviour);
  agents.push(listening);
  return listening;
}

interface Settings {
  readonly version?: string;
  /** Text of the value; undefined for none. */
  readonly prevResult?: string | undefined;
  readonly [key: string]: unknown;
}

/** What libcni would write to stdin, with prevResult as the given text. */
function configuration(settings: Settings = {}): string {
  const version = settings.version ?? '1.1.0';
  const { prevResult = RESULTS[version as CniVersion] ?? '{}', ...rest } = settings;
  const { version: _, ...keys } = rest;
  const own = JSON.stringify({
    cniVersion: version,
    name: 'pods',
    type: 'nodesentry-cni',
    socket: socket(),
    timeoutMs: 5_000,
    ...keys,
  });
  const without = 'prevResult' in settings && settings.prevResult === undefined;
  return without ? own : `${own.slice(0, -1)},"prevResult":${prevResult}}`;
}

const call = (command: string, settings?: Settings, env: Record<string, string> = {}): Promise<PluginRun> =>
  callPlugin({ ...POD, CNI_COMMAND: command, ...env }, configuration(settings));

interface CniError {
  readonly cniVersion: string;
  readonly code: number;
  readonly msg: string;
  readonly details?: string;
}

function errorOf(run: PluginRun): CniError {
  expect(run.code).toBe(1);
  return JSON.parse(run.stdout) as CniError;
}

function logged(run: PluginRun): Record<string, string>[] {
  return run.stderr
    .trim()
    .split('\n')
    .filter((line) => line !== '')
    .map((line) => JSON.parse(line) as Record<string, string>);
}

test('the plugin is one static binary that needs no library of the node', () => {
  expect(execFileSync('readelf', ['-ld', PLUGIN], { encoding: 'utf8' })).not.toMatch(/INTERP|NEEDED/);
  expect(statSync(PLUGIN).size).toBeLessThan(2 << 20);
});

describe.each(VERSIONS)('with CNI %s', (version) => {
  test('ADD asks the agent, and hands the result of the plugin before it on untouched', async () => {
    const { requests, texts } = await agent(INTERCEPTED);
    const run = await call('ADD', { version });
    expect(run).toMatchObject({ stdout: `${RESULTS[version]}\n`, stderr: '', code: 0 });
    expect(requests).toEqual([
      {
        version: 1,
        command: 'ADD',
        containerId: 'c1b2',
        netns: '/proc/self/ns/net',
        ifname: 'eth0',
        podUid: '6f0c-11',
        podNamespace: 'shop',
        podName: 'web-0',
        prevResult: JSON.parse(RESULTS[version]),
        timeoutMs: expect.any(Number),
      },
    ]);
    expect(texts[0]).toContain(RESULTS[version]);
    expect(requests[0]?.timeoutMs).toBeGreaterThan(0);
    expect(requests[0]?.timeoutMs).toBeLessThanOrEqual(5_000);
  });

  test('CHECK asks the agent and prints nothing; 0.3.1 does not have it', async () => {
    const { requests } = await agent(INTERCEPTED);
    if (version === '0.3.1') {
      expect(errorOf(await call('CHECK', { version }))).toMatchObject({
        code: 1,
        msg: 'cniVersion 0.3.1 does not have the command CHECK, which came with 0.4.0',
      });
      expect(requests).toEqual([]);
      return;
    }
    expect(await call('CHECK', { version })).toMatchObject({ stdout: '', stderr: '', code: 0 });
    expect(requests).toMatchObject([{ command: 'CHECK', prevResult: JSON.parse(RESULTS[version]) }]);
  });

  test('DEL tells the agent and prints nothing, with and without a namespace and a result', async () => {
    const { requests } = await agent(answering({ ok: true }));
    expect(await call('DEL', { version })).toMatchObject({ stdout: '', stderr: '', code: 0 });
    const bare = { ...POD, CNI_COMMAND: 'DEL', CNI_NETNS: '' };
    expect(await callPlugin(bare, configuration({ version, prevResult: undefined }))).toMatchObject({
      stdout: '',
      stderr: '',
      code: 0,
    });
    expect(requests.map(({ timeoutMs: _, ...rest }) => rest)).toEqual([
      {
        version: 1,
        command: 'DEL',
        containerId: 'c1b2',
        netns: '/proc/self/ns/net',
        ifname: 'eth0',
        podUid: '6f0c-11',
        podNamespace: 'shop',
        podName: 'web-0',
      },
      {
        version: 1,
        command: 'DEL',
        containerId: 'c1b2',
        ifname: 'eth0',
        podUid: '6f0c-11',
        podNamespace: 'shop',
        podName: 'web-0',
      },
    ]);
  });

  test('VERSION names all versions and the one it was asked in', async () => {
    const run = await callPlugin({ CNI_COMMAND: 'VERSION' }, JSON.stringify({ cniVersion: version }));
    expect(run.code).toBe(0);
    expect(JSON.parse(run.stdout)).toEqual({ cniVersion: version, supportedVersions: [...VERSIONS] });
  });

  test('STATUS and GC exist where the version has them, else the version is named', async () => {
    const { requests } = await agent(answering({ ok: true }));
    const valid = [{ containerID: 'c1b2', ifname: 'eth0' }];
    for (const command of ['STATUS', 'GC']) {
      const env = { CNI_COMMAND: command, CNI_PATH: '/opt/cni/bin' };
      const run = await callPlugin(env, configuration({ version, 'cni.dev/valid-attachments': valid }));
      if (version === '1.1.0') {
        expect(run).toMatchObject({ stdout: '', stderr: '', code: 0 });
      } else {
        expect(errorOf(run)).toMatchObject({
          code: 1,
          msg: `cniVersion ${version} does not have the command ${command}, which came with 1.1.0`,
        });
      }
    }
    expect(requests).toEqual(
      version === '1.1.0'
        ? [
            { version: 1, command: 'STATUS', timeoutMs: expect.any(Number) },
            {
              version: 1,
              command: 'GC',
              attachments: [{ containerId: 'c1b2', ifname: 'eth0' }],
              timeoutMs: expect.any(Number),
            },
          ]
        : [],
    );
  });
});

test('VERSION answers whatever version it is asked in, even none', async () => {
  for (const [input, cniVersion] of [
    ['{"cniVersion":"0.1.0"}', '0.1.0'],
    ['{"cniVersion":"99.0.0"}', '99.0.0'],
    ['{}', '1.1.0'],
    ['', '1.1.0'],
    ['not JSON', '1.1.0'],
  ]) {
    const run = await callPlugin({ CNI_COMMAND: 'VERSION' }, input);
    expect(run.code).toBe(0);
    expect(JSON.parse(run.stdout)).toEqual({ cniVersion, supportedVersions: [...VERSIONS] });
  }
});

describe('what passes through', () => {
  test('annotations that containerd adds reach the agent as they are, a pod without any has none', async () => {
    const { requests } = await agent(INTERCEPTED);
    const annotations = { 'nodesentry.io/intercept': 'enabled', ключ: 'süß 🎈\n' };
    const capability = 'io.kubernetes.cri.pod-annotations';
    await call('ADD', { runtimeConfig: { portMappings: [], [capability]: annotations } });
    await call('ADD', { runtimeConfig: { [capability]: null } });
    await call('ADD', { runtimeConfig: {} });
    expect(requests.map((request) => request.annotations)).toEqual([annotations, undefined, undefined]);
  });

  test('a result of nearly 1 MiB, nested 100,000 deep', async () => {
    const deep = `${'['.repeat(100_000)}${']'.repeat(100_000)}`;
    const prevResult = `{"cniVersion":"1.1.0","deep":${deep},"long":"${'é'.repeat(400_000)}"}`;
    const { texts } = await agent(INTERCEPTED);
    const run = await call('ADD', { prevResult });
    expect([run.code, run.stdout === `${prevResult}\n`]).toEqual([0, true]);
    expect(texts[0]?.includes(prevResult)).toBe(true);
  });

  test('of a key that stands twice the last counts, as for the runtime', async () => {
    await agent(INTERCEPTED);
    const text = configuration({ prevResult: '{"a":1}' }).replace('{', '{"prev\\u0052esult":{"b":2},');
    const run = await callPlugin({ ...POD, CNI_COMMAND: 'ADD' }, text);
    expect(run).toMatchObject({ stdout: '{"a":1}\n', code: 0 });
  });

  test('keys that are not ours are ignored', async () => {
    await agent(INTERCEPTED);
    const strange = { capabilities: 7, ipam: [], dns: 'x', 'x-vendor': null, args: { cni: 1 } };
    expect(await call('ADD', strange)).toMatchObject({ code: 0 });
  });

  test('of CNI_ARGS only what is there', async () => {
    const { requests } = await agent(INTERCEPTED);
    await call('ADD', {}, { CNI_ARGS: '' });
    await call('ADD', {}, { CNI_ARGS: 'K8S_POD_NAME=a=b;;K8S_POD_UID=;' });
    expect(requests.map(({ podName, podUid, podNamespace }) => [podName, podUid, podNamespace])).toEqual([
      [undefined, undefined, undefined],
      ['a=b', undefined, undefined],
    ]);
  });
});

describe('an agent that is away', () => {
  test('ADD waits for one that dies under it and comes back', async () => {
    let first: AgentStandIn | undefined;
    const dying = new Promise<void>((resolve) => {
      agent((_request, connection) => {
        connection.destroy();
        resolve();
      }).then((listening) => {
        first = listening;
      });
    });
    const running = call('ADD', { timeoutMs: 30_000 });
    await dying;
    await first?.close();
    const { requests } = await agent(INTERCEPTED);
    expect(await running).toMatchObject({ stdout: `${RESULTS['1.1.0']}\n`, code: 0 });
    expect(requests).toHaveLength(1);
  });

  test('ADD waits out a socket that a dead agent has left behind', async () => {
    const dies = 'require("net").createServer().listen(process.argv[1], () => process.kill(process.pid, 9))';
    spawnSync(process.execPath, ['-e', dies, socket()]);
    expect(existsSync(socket())).toBe(true);
    expect(errorOf(await call('ADD', { timeoutMs: 60 }))).toMatchObject({
      code: 11,
      msg: expect.stringContaining('connect: Connection refused'),
    });
    const running = call('ADD', { timeoutMs: 30_000 });
    rmSync(socket());
    await agent(INTERCEPTED);
    expect(await running).toMatchObject({ code: 0 });
  });

  test('ADD asks again while it says "retry"', async () => {
    const retry = { ok: false, code: 11, msg: 'not synced', retry: true };
    const { requests } = await agent((request, connection, n) =>
      (n < 3 ? answering(retry) : INTERCEPTED)(request, connection, n),
    );
    expect(await call('ADD')).toMatchObject({ code: 0 });
    const left = requests.map(({ timeoutMs }) => Number(timeoutMs));
    expect(left).toHaveLength(4);
    expect(left).toEqual([...left].sort((a, b) => b - a));
    expect(left[0]).toBeGreaterThanOrEqual((left[3] ?? 0) + 20 + 40 + 80);
  });

  test.each([
    ['dies without an answer', (_: string, connection: { destroy(): void }) => connection.destroy()],
    ['closes in the middle of its answer', answering('{"ok":tr')],
    ['answers garbage', answering('\u0000\u0001 hello')],
    ['answers something else', answering('[true]')],
    ['answers what is nested 500,000 deep', answering('['.repeat(500_000) + ']'.repeat(500_000))],
    ['answers more than 1 MiB', answering(' '.repeat((1 << 20) + 1))],
  ] satisfies [string, Behaviour][])('ADD asks again when it %s', async (_, behaviour) => {
    const { requests } = await agent((request, connection, n) =>
      (n === 0 ? behaviour : INTERCEPTED)(request, connection, n),
    );
    expect(await call('ADD')).toMatchObject({ stdout: `${RESULTS['1.1.0']}\n`, stderr: '', code: 0 });
    expect(requests).toHaveLength(2);
  });

  test('closed: ADD fails with "try again later" that says which socket, what failed and why', async () => {
    const run = await call('ADD', { timeoutMs: 100 });
    expect(errorOf(run)).toEqual({
      cniVersion: '1.1.0',
      code: 11,
      msg:
        `the nodesentry agent at ${socket()} did not answer within 100 ms: connect: No such file or directory ` +
        '(failure: closed, so the pod is not started without its datapath)',
    });
    expect(run.tookMs).toBeGreaterThanOrEqual(100);
  });

  test('closed: an agent that hangs costs timeoutMs and no more', async () => {
    await agent(() => undefined);
    const run = await call('ADD', { timeoutMs: 300 });
    expect(errorOf(run)).toMatchObject({ code: 11, msg: expect.stringContaining('no answer in time') });
    expect(run.tookMs).toBeGreaterThanOrEqual(300);
    expect(run.tookMs).toBeLessThan(300 + SLACK_MS);
  });

  test('open: ADD passes, and says so on stderr', async () => {
    const run = await call('ADD', { timeoutMs: 50, failure: 'open' });
    expect(run).toMatchObject({ stdout: `${RESULTS['1.1.0']}\n`, code: 0 });
    expect(logged(run)).toEqual([
      expect.objectContaining({
        level: 'warn',
        command: 'ADD',
        containerId: 'c1b2',
        podNamespace: 'shop',
        podName: 'web-0',
        msg: expect.stringMatching(/did not answer within 50 ms: .*\(failure: open, so this is let pass\)/),
      }),
    ]);
  });

  test('CHECK follows the same policy', async () => {
    expect(errorOf(await call('CHECK', { timeoutMs: 50 }))).toMatchObject({ code: 11 });
    expect(await call('CHECK', { timeoutMs: 50, failure: 'open' })).toMatchObject({ stdout: '', code: 0 });
  });

  test('STATUS of an agent that hangs fails within a second', async () => {
    await agent(() => undefined);
    const run = await call('STATUS', { timeoutMs: 60_000 });
    expect(errorOf(run)).toMatchObject({ code: 50 });
    expect(run.tookMs).toBeLessThan(1_000 + SLACK_MS);
  });

  test('STATUS is 50 when closed, and fine when open', async () => {
    const closed = await call('STATUS');
    expect(errorOf(closed)).toMatchObject({ code: 50, msg: expect.stringContaining(socket()) });
    expect(await call('STATUS', { failure: 'open' })).toMatchObject({ stdout: '', code: 0 });
  });

  test('DEL goes on at once', async () => {
    const run = await call('DEL', { timeoutMs: 60_000 });
    expect(run).toMatchObject({ stdout: '', code: 0 });
    expect(logged(run)).toMatchObject([{ level: 'warn', msg: expect.stringContaining('did not answer') }]);
    expect(run.tookMs).toBeLessThan(SLACK_MS);
  });

  test('DEL waits half a second for an agent that hangs', async () => {
    await agent(() => undefined);
    const run = await call('DEL', { timeoutMs: 60_000 });
    expect(run).toMatchObject({ stdout: '', code: 0 });
    expect(run.tookMs).toBeGreaterThanOrEqual(500);
    expect(run.tookMs).toBeLessThan(500 + SLACK_MS);
  });

  test('GC reports that nothing was collected', async () => {
    const run = await call('GC', { 'cni.dev/valid-attachments': [] });
    expect(errorOf(run)).toMatchObject({ code: 11, msg: expect.stringContaining('did not answer') });
  });
});

describe('an agent that says no', () => {
  const refusal = answering({
    ok: false,
    code: 107,
    msg: 'no veth',
    details: 'macvlan has none',
    retry: false,
  });

  test('closed: ADD and CHECK fail with its code, message and details, at once', async () => {
    await agent(refusal);
    for (const command of ['ADD', 'CHECK']) {
      expect(errorOf(await call(command))).toMatchObject({
        code: 107,
        msg: expect.stringContaining('refused: no veth (failure: closed'),
        details: 'macvlan has none',
      });
    }
  });

  test('open: ADD and CHECK pass, and the reason is logged', async () => {
    await agent(refusal);
    for (const command of ['ADD', 'CHECK']) {
      const run = await call(command, { failure: 'open' });
      expect(run.code).toBe(0);
      expect(logged(run)).toMatchObject([{ msg: expect.stringMatching(/refused: no veth.*macvlan/) }]);
    }
  });

  test('"retry" until the end is "try again later" with what it said', async () => {
    await agent(answering({ ok: false, code: 7, msg: 'not synced', details: 'cri', retry: true }));
    expect(errorOf(await call('ADD', { timeoutMs: 200 }))).toMatchObject({
      code: 11,
      msg: expect.stringContaining('was not ready within 200 ms: not synced'),
      details: 'cri',
    });
  });

  test('a code that is no code does not become success', async () => {
    for (const code of [0, -1, 1.5, 'x', 1e300, null]) {
      const { path } = await agent(answering({ ok: false, code }));
      expect(errorOf(await call('ADD'))).toMatchObject({ code: 999 });
      await agents.pop()?.close();
      expect(existsSync(path)).toBe(false);
    }
  });

  test('STATUS keeps 51, and turns every other code into 50', async () => {
    const { requests } = await agent((request, connection, n) =>
      answering({ ok: false, code: n === 0 ? 51 : 7, msg: 'half' })(request, connection, n),
    );
    expect(errorOf(await call('STATUS')).code).toBe(51);
    expect(errorOf(await call('STATUS')).code).toBe(50);
    expect(requests).toHaveLength(2);
  });

  test('DEL succeeds all the same, GC passes the error on', async () => {
    await agent(refusal);
    expect(await call('DEL')).toMatchObject({ stdout: '', code: 0 });
    const run = await call('GC', { failure: 'open', 'cni.dev/valid-attachments': [] });
    expect(errorOf(run)).toMatchObject({ code: 107 });
  });
});

describe('GC', () => {
  test('without a list of attachments collects nothing: silence is not "none is valid"', async () => {
    const { requests } = await agent(answering({ ok: true }));
    const run = await call('GC');
    expect(run).toMatchObject({ stdout: '', code: 0 });
    expect(logged(run)).toMatchObject([{ msg: expect.stringContaining('nothing collected') }]);
    expect(requests).toEqual([]);
  });

  test('an empty list is a list; the name that libcni also uses counts', async () => {
    const { requests } = await agent(answering({ ok: true }));
    await call('GC', { 'cni.dev/valid-attachments': [] });
    await call('GC', { 'cni.dev/attachments': [{ containerID: 'a', ifname: 'b', extra: 1 }] });
    expect(requests.map(({ attachments }) => attachments)).toEqual([[], [{ containerId: 'a', ifname: 'b' }]]);
  });
});

describe('bad input has one clear error', () => {
  const bad: [string, string | Buffer, number, RegExp][] = [
    ['nothing', '', 6, /not JSON/],
    ['text', 'plugins: []', 6, /not JSON/],
    ['half a document', '{"cniVersion":"1.1.0"', 6, /not JSON/],
    ['two documents', '{}{}', 6, /not JSON/],
    ['no UTF-8', Buffer.from('{"a":"\xff\xfe"}', 'latin1'), 6, /not JSON/],
    ['a list', '[]', 6, /not a JSON object/],
    ['null', 'null', 6, /not a JSON object/],
    ['more than 1 MiB', `{"a":"${'x'.repeat(1 << 20)}"}`, 7, /longer than 1 MiB/],
    ['no version', '{"name":"a"}', 1, /cniVersion is missing.*\["0.3.1","0.4.0","1.0.0","1.1.0"\]/],
    [
      'an unknown version',
      '{"cniVersion":"2.0.0"}',
      1,
      /cniVersion 2.0.0 is not supported.*\["0.3.1","0.4.0","1.0.0","1.1.0"\]/,
    ],
    ['an old version', '{"cniVersion":"0.3.0"}', 1, /cniVersion 0.3.0 is not supported/],
    ['a version that is a number', '{"cniVersion":1}', 7, /^cniVersion: expected a string, got 1$/],
  ];
  test.each(bad)('on stdin: %s', async (_, input, code, message) => {
    for (const command of ['ADD', 'CHECK', 'STATUS', 'GC']) {
      const error = errorOf(await callPlugin({ ...POD, CNI_COMMAND: command }, input));
      expect(error).toMatchObject({ code, msg: expect.stringMatching(message) });
    }
  });

  test.each([
    ['socket', 7],
    ['socket', 'cni.sock'],
    ['socket', `/${'x'.repeat(107)}`],
    ['socket', ''],
    ['failure', 'ajar'],
    ['failure', true],
    ['timeoutMs', '10'],
    ['timeoutMs', 0],
    ['timeoutMs', 1.5],
    ['timeoutMs', 600_001],
    ['logFile', 1],
    ['logFile', 'relative.log'],
    ['prevResult', '[]'],
    ['prevResult', '"x"'],
    ['runtimeConfig', []],
    ['cni.dev/valid-attachments', {}],
  ])('a key of ours: %s %j', async (key, value) => {
    const error = errorOf(await call('ADD', { [key]: value }));
    expect(error.code).toBe(7);
    expect(error.msg).toMatch(new RegExp(`^${key}: expected .*, got `));
  });

  test('fields inside keys of ours are named', async () => {
    const annotations = { 'io.kubernetes.cri.pod-annotations': 'x' };
    expect(errorOf(await call('ADD', { runtimeConfig: annotations })).msg).toBe(
      'runtimeConfig["io.kubernetes.cri.pod-annotations"]: expected a JSON object, got "x"',
    );
    const list = [{ containerID: 'a', ifname: 'b' }, { containerID: 'a' }];
    expect(errorOf(await call('GC', { 'cni.dev/valid-attachments': list })).msg).toBe(
      'cni.dev/valid-attachments[1].ifname: expected a string, got null',
    );
  });

  test.each([
    ['ADD', ['CNI_CONTAINERID', 'CNI_NETNS', 'CNI_IFNAME']],
    ['CHECK', ['CNI_CONTAINERID', 'CNI_NETNS', 'CNI_IFNAME']],
    ['GC', ['CNI_PATH']],
  ])('%s without its variables names each', async (command, names) => {
    const all = errorOf(await callPlugin({ CNI_COMMAND: command }, configuration()));
    expect(all).toMatchObject({ code: 4, msg: `missing in the environment: ${names.join(', ')}` });
    for (const name of names) {
      const run = await callPlugin({ ...POD, CNI_COMMAND: command, [name]: '' }, configuration());
      expect(errorOf(run)).toMatchObject({ code: 4, msg: `missing in the environment: ${name}` });
    }
  });

  test('no command, and one that CNI does not have', async () => {
    expect(errorOf(await callPlugin({}, '{}'))).toMatchObject({ code: 4, msg: 'CNI_COMMAND is missing' });
    const run = await callPlugin({ CNI_COMMAND: 'add' }, '{}');
    expect(errorOf(run)).toMatchObject({
      code: 4,
      msg: expect.stringMatching(/^CNI_COMMAND: .*got "add"$/),
    });
  });

  test.each([
    ['CNI_CONTAINERID', '../etc'],
    ['CNI_CONTAINERID', '-a'],
    ['CNI_CONTAINERID', 'ä'],
    ['CNI_IFNAME', 'a/b'],
    ['CNI_IFNAME', '..'],
    ['CNI_IFNAME', 'a b'],
    ['CNI_IFNAME', 'a:1'],
    ['CNI_IFNAME', 'sixteen-letters-'],
    ['CNI_ARGS', 'K8S_POD_NAME'],
    ['CNI_ARGS', '=x'],
    ['CNI_NETNS', '/run/netns/not-there'],
    ['CNI_NETNS', '/etc/passwd'],
    ['CNI_NETNS', '/proc/self/ns/mnt'],
    ['CNI_NETNS', '/tmp'],
  ])('%s=%s', async (name, value) => {
    const { requests } = await agent(INTERCEPTED);
    for (const command of ['ADD', 'CHECK']) {
      const error = errorOf(await call(command, {}, { [name]: value }));
      expect(error).toMatchObject({ code: 4, msg: expect.stringMatching(new RegExp(`^${name}: `)) });
    }
    expect(requests).toEqual([]);
  });

  test('ADD and CHECK without a plugin before ours', async () => {
    const { requests } = await agent(INTERCEPTED);
    for (const command of ['ADD', 'CHECK']) {
      for (const prevResult of [undefined, 'null']) {
        const error = errorOf(await call(command, { prevResult }));
        expect(error).toMatchObject({ code: 7, msg: 'prevResult is missing' });
      }
    }
    expect(requests).toEqual([]);
  });

  test.each([
    ['not JSON', {}, 'xx'],
    ['an unknown version', {}, '{"cniVersion":"9.9.9"}'],
    ['wrong types of our keys', {}, '{"cniVersion":"1.1.0","socket":7,"timeoutMs":"x","prevResult":[]}'],
    ['nothing in the environment', { CNI_CONTAINERID: '', CNI_IFNAME: '' }, undefined],
    ['a container ID that is none', { CNI_CONTAINERID: '../x' }, undefined],
    ['a namespace that has gone', { CNI_NETNS: '/run/netns/gone' }, undefined],
  ])('DEL succeeds and logs with %s', async (_, env, input) => {
    const run = await callPlugin({ ...POD, CNI_COMMAND: 'DEL', ...env }, input ?? configuration());
    expect(run).toMatchObject({ stdout: '', code: 0 });
    expect(logged(run).length).toBeGreaterThan(0);
  });
});

describe('logFile', () => {
  const lines = (file: string): Record<string, string>[] =>
    readFileSync(file, 'utf8')
      .trim()
      .split('\n')
      .map((line) => JSON.parse(line) as Record<string, string>);

  test('has one line per event, good or bad, also with many plugins at once', async () => {
    const logFile = join(folder, 'cni.log');
    await agent(INTERCEPTED);
    await Promise.all(Array.from({ length: 20 }, () => call('ADD', { logFile })));
    expect(lines(logFile)).toHaveLength(20);
    expect(lines(logFile)[0]).toMatchObject({
      level: 'info',
      command: 'ADD',
      msg: expect.stringContaining('INTERCEPTED'),
    });
    await agents.pop()?.close();
    await call('ADD', { logFile, timeoutMs: 20 });
    await call('ADD', { logFile, timeoutMs: 20, failure: 'open' });
    await call('DEL', { logFile });
    expect(
      lines(logFile)
        .slice(20)
        .map(({ level, command }) => [level, command]),
    ).toEqual([
      ['error', 'ADD'],
      ['warn', 'ADD'],
      ['warn', 'DEL'],
    ]);
  });

  test('that cannot be written changes nothing: stderr has the line', async () => {
    const run = await call('ADD', { logFile: '/proc/nope/x.log', timeoutMs: 20, failure: 'open' });
    expect(run.code).toBe(0);
    expect(logged(run)).toHaveLength(1);
  });
});

test('200 plugins at once, as after a node boot, all get their answer', async () => {
  await agent(INTERCEPTED);
  const runs = await Promise.all(Array.from({ length: 200 }, () => call('ADD', { timeoutMs: 30_000 })));
  expect(runs.filter(({ code }) => code !== 0)).toEqual([]);
}, 120_000);

test('a runtime that stops reading does not crash the plugin', () => {
  const env = Object.entries({ ...POD, CNI_COMMAND: 'ADD' }).map(([key, value]) => `${key}=${value}`);
  const long = `{"long":"${'x'.repeat(900_000)}"}`;
  const script = '{ env -i "$@" 2>/dev/null; echo "exit $?" >&2; } | true';
  const { stderr } = spawnSync('sh', ['-c', script, 'sh', ...env, PLUGIN], {
    input: configuration({ failure: 'open', timeoutMs: 1, prevResult: long }),
    encoding: 'utf8',
  });
  expect(stderr).toBe('exit 1\n'); // a signal would be 128 and more
});
