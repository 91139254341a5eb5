import { mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import type { Command } from 'commander';
import { afterEach, beforeEach, describe, expect, test, vi } from 'vitest';
import { takeLock } from '../../src/agent/run-lock.js';
import { agentCommand } from '../../src/cli/agent.js';
import { cleanupCommand } from '../../src/cli/cleanup.js';
import { configCommand } from '../../src/cli/config.js';
import { drainCommand, resumeCommand } from '../../src/cli/drain.js';
import { explainCommand } from '../../src/cli/explain.js';
import { flowsCommand } from '../../src/cli/flows.js';
import { clockTime, duration, table } from '../../src/cli/output.js';
import { podsCommand } from '../../src/cli/pods.js';
import { runProgram } from '../../src/cli/program.js';
import { proxyCommand } from '../../src/cli/proxy.js';
import { resolveCommand } from '../../src/cli/resolve.js';
import { statusCommand } from '../../src/cli/status.js';
import { DST, endpoint, type Fixture, flowRecord, pod, SRC, startFixture, uid } from './api-fixture.js';

let folder: string;
let printed: string;
let errors: string;

beforeEach(() => {
  folder = mkdtempSync(join(tmpdir(), 'nodesentry-cli-'));
  printed = '';
  errors = '';
});

afterEach(() => {
  rmSync(folder, { recursive: true, force: true });
});

function run(...args: string[]): Promise<0 | 1 | 2> {
  const print = (text: string): void => {
    printed += `${text}\n`;
  };
  const commands: Command[] = [
    agentCommand(),
    podsCommand(print),
    drainCommand(print),
    resumeCommand(print),
    flowsCommand(print),
    resolveCommand(print),
    explainCommand(print),
    statusCommand(print),
    cleanupCommand(print),
    proxyCommand(),
    configCommand(print),
  ];
  return runProgram(args, '1.2.3', commands, {
    out: (text) => {
      printed += text;
    },
    err: (text) => {
      errors += text;
    },
  });
}

describe('with an agent', () => {
  let fixture: Fixture;
  beforeEach(async () => {
    fixture = await startFixture();
  });
  afterEach(() => fixture.close());

  const ask = (...args: string[]) => run(...args, '--run-dir', fixture.runDir);

  test('pods prints an aligned table, a line per pod', async () => {
    fixture.store.replaceSource('static', [
      pod('web-0'),
      pod('batch-with-a-long-name', {
        ips: ['10.66.0.4', 'fd00:66::4'],
        runtime: 'runc',
        runtimeHandler: '',
      }),
    ]);
    fixture.datapath.statuses.push({
      podUid: uid('uid-batch-with-a-long-name'),
      state: 'REFUSED',
      reason: 'HOST_NETWORK: the pod uses the network of the host',
      interfaces: [],
      inbound: false,
      failure: 'closed',
      desired: true,
      programmed: false,
      verified: false,
    });
    expect(await ask('pods')).toBe(0);
    expect(printed).toBe(
      [
        'NAMESPACE  NAME                    RUNTIME  STATE        DIRECTIONS     INTERFACE  TOPOLOGY  IPS                   DESIRED  PROGRAMMED  VERIFIED  REASON                                              SPLICE',
        'default    batch-with-a-long-name  runc     REFUSED      -              -          -         10.66.0.4,fd00:66::4  yes      no          no        HOST_NETWORK: the pod uses the network of the host  no: the node has it disabled',
        'default    web-0                   runsc    INTERCEPTED  outbound only  veth0      routed    10.66.0.3             yes      yes         yes       -                                                   no: the node has it disabled',
        '',
      ].join('\n'),
    );
  });

  test('pods without pods says so, and prints JSON on request', async () => {
    fixture.store.replaceSource('static', []);
    expect(await ask('pods')).toBe(0);
    expect(printed).toBe('No pods: no source names any.\n');
    printed = '';
    expect(await ask('pods', '--json')).toBe(0);
    expect(JSON.parse(printed)).toEqual({ epoch: 'epoch-1', revision: 2, workloads: [] });
  });

  test('flows prints the newest flows with their pods', async () => {
    expect(await ask('flows')).toBe(0);
    expect(printed.split('\n').map((line) => line.split(/\s{2,}/).slice(1))).toEqual([
      ['POD', 'DIRECTION', 'SRC', 'DST', 'INSTANCE', 'VERDICT'],
      ['default/web-0', 'EGRESS', '10.66.0.3:41886', '10.200.1.1:80', 'default', 'FLOW_STARTED'],
      [],
    ]);
    printed = '';
    expect(await ask('flows', '--json', '--limit', '1')).toBe(0);
    expect(JSON.parse(printed)).toMatchObject({ flows: [{ podName: 'web-0' }] });
  });

  test('flows --follow prints flows as they happen, and fails when the agent goes', async () => {
    const running = ask('flows', '--follow');
    await vi.waitFor(() => expect(printed).toContain('VERDICT'));
    fixture.datapath.emit({ ...flowRecord(SRC, DST), verdict: 'NO_LISTENER_RESET' });
    fixture.datapath.emit({ ...flowRecord(SRC, DST, { endpointId: 99 }), verdict: 'FLOW_STARTED' });
    await vi.waitFor(() => expect(printed.trimEnd().split('\n')).toHaveLength(3));
    expect(printed).toMatch(
      /default\/web-0 +EGRESS +10\.66\.0\.3:41886 +10\.200\.1\.1:80 +default +NO_LISTENER_RESET/,
    );
    expect(printed).toContain('(gone)');
    await fixture.api.close();
    expect(await running).toBe(1);
    expect(errors).toMatch(/^nodesentry: the agent at .* did not answer: .*\n$/);
  });

  test('resolve names the pod, in text and in the JSON of the API', async () => {
    const flow = ['--src', '10.66.0.3:41886', '--dst', '10.200.1.1:80'];
    expect(await ask('resolve', ...flow)).toBe(0);
    expect(printed).toBe(
      [
        'Pod:       default/web-0',
        'SPIFFE ID: spiffe://cluster.local/ns/default/sa/web',
        'App:       web',
        'Runtime:   runsc, handler gvisor',
        'UID:       uid-web-0 (generation 3)',
        'State:     LIVE',
        'Flow:      EGRESS 10.66.0.3:41886 -> 10.200.1.1:80',
        'To:        no pod of this node',
        'Instance:  default',
        'Assurance: DATAPATH_RECORDED',
        '',
      ].join('\n'),
    );
    printed = '';
    expect(await ask('resolve', ...flow, '--json')).toBe(0);
    expect(JSON.parse(printed)).toMatchObject({ workload: { podName: 'web-0' }, ttlMs: 1000 });
  });

  test('explain says what would become of a flow, and by which rule', async () => {
    expect(await ask('explain', 'default/web-0', '--dst', '10.200.1.1:80')).toBe(0);
    expect(printed).toBe(
      [
        'Pod:       default/web-0',
        'Flow:      EGRESS to 10.200.1.1:80',
        'Outcome:   INTERCEPTED',
        'Instance:  default',
        'Rule:      nothing excludes it',
        '',
      ].join('\n'),
    );
    printed = '';
    expect(await ask('explain', 'web-0', '--src', '[fd00::1]:443')).toBe(0);
    expect(printed).toContain('Flow:      INGRESS from fd00::1 to port 443\n');
    expect(printed).toContain('Outcome:   EXCLUDED, once it is in place\nInstance:  -\n');
    printed = '';
    expect(await ask('explain', 'uid-web-0', '--dst', '10.200.1.1:80', '--json')).toBe(0);
    expect(JSON.parse(printed)).toMatchObject({
      outcome: 'INTERCEPTED',
      podName: 'web-0',
      state: 'INTERCEPTED',
    });
  });

  test.each([
    [['web-0'], 2, 'exactly one of --dst and --src'],
    [['web-0', '--dst', '10.0.0.1:80', '--src', '10.0.0.1:80'], 2, 'exactly one of --dst and --src'],
    [['web-0', '--dst', '10.0.0.1'], 2, 'expected an address and port'],
    [['--dst', '10.0.0.1:80'], 2, "missing required argument 'pod'"],
    [['other', '--dst', '10.0.0.1:80'], 1, 'pod: no pod of this node is other'],
  ])('explain %j exits %i', async (words, code, said) => {
    expect(await ask('explain', ...words)).toBe(code);
    expect(errors).toContain(said);
  });

  test('explain takes no guess where two pods have the name', async () => {
    fixture.store.replaceSource('static', [
      pod('web-0'),
      pod('web-0', { namespace: 'other', uid: uid('u2') }),
    ]);
    expect(await ask('explain', 'web-0', '--dst', '10.0.0.1:80')).toBe(1);
    expect(errors).toContain('pod: more than one is web-0: default/web-0 (uid-web-0), other/web-0 (u2)');
    expect(await ask('explain', 'other/web-0', '--dst', '10.0.0.1:80')).toBe(0);
  });

  test('resolve takes weak answers only when it is asked for them', async () => {
    const weak = ['--src', '10.66.0.3:1', '--dst', '10.200.1.1:80'];
    expect(await ask('resolve', ...weak)).toBe(1);
    expect(errors).toMatch(/^nodesentry: the flow is known with IP_ONLY, .*minAssurance IP_ONLY.*\n$/);
    expect(await ask('resolve', ...weak, '--min-assurance', 'IP_ONLY')).toBe(0);
    expect(printed).toContain('Assurance: IP_ONLY\n');
    expect(await ask('resolve', ...weak, '--min-assurance', 'ALL')).toBe(2);
  });

  test('resolve of a flow that nobody knows exits 1 with one line', async () => {
    expect(await ask('resolve', '--src', '10.9.9.9:1', '--dst', '10.200.1.1:80')).toBe(1);
    expect([printed, errors]).toEqual([
      '',
      'nodesentry: the flow was not recorded, and no pod of this node has the address 10.9.9.9\n',
    ]);
  });

  test('status says what is adopted, and what a family without a listener meets', async () => {
    const none = { instance: 'default', adopted: false, sockets: { all: 0, transparent: 0 } } as const;
    fixture.datapath.listening = [
      {
        instance: 'default',
        direction: 'outbound',
        family: 4,
        address: '127.0.0.1:15001',
        adopted: true,
        pid: 77,
        process: 'envoy',
        sockets: { all: 4, transparent: 3 },
      },
      { ...none, direction: 'outbound', family: 6, address: 'not configured' },
      { ...none, direction: 'inbound', family: 4, address: '127.0.0.1:15006' },
      { ...none, direction: 'outbound', family: 4, address: '127.0.0.1:16001', refused: 'held by uid 65534' },
    ];
    fixture.datapath.packets = [
      {
        endpointId: 1,
        podUid: uid('uid-web-0'),
        direction: 'EGRESS',
        packets: { FLOW_STARTED: 3, MALFORMED: 0 },
      },
    ];
    fixture.datapath.statuses.push(endpoint(uid('x'), { state: 'DEGRADED' }));
    fixture.state.blockers = ['source cri has not synced'];
    fixture.datapath.late = 2;
    expect(await ask('status')).toBe(0);
    for (const line of [
      /^Agent: +nodesentry 1\.2\.3, pid \d+, up \d+s$/m,
      /^Node: +node-a$/m,
      /^Ready: +NO: source cri has not synced$/m,
      /^Events lost: 2 \(the kernel's buffer was full\), 1 \(the agent was behind\)$/m,
      /^Late pods: +2 not announced by the CNI plugin: their first connections may have gone past the proxy$/m,
      /^ {2}static +yes +-$/m,
      /^ {2}default +outbound +IPv4 +127\.0\.0\.1:15001 +yes +reach envoy, pid 77 \(3 of 4 sockets\)$/m,
      /^ {2}default +outbound +IPv6 +not configured +NO +are reset \(failure: closed\)$/m,
      /^ {2}default +inbound +IPv4 +127\.0\.0\.1:15006 +NO +are reset \(failure: closed\)$/m,
      /^ {2}default +outbound +IPv4 +127\.0\.0\.1:16001 +NO +are reset \(failure: closed\): held by uid 65534$/m,
      /^ {2}DEGRADED +1$/m,
      /^ {2}FLOW_STARTED +3$/m,
    ]) {
      expect(printed).toMatch(line);
    }
    expect(printed).not.toContain('MALFORMED');
    printed = '';
    expect(await ask('status', '--json')).toBe(0);
    expect(JSON.parse(printed)).toMatchObject({
      version: '1.2.3',
      endpoints: { INTERCEPTED: 1, DEGRADED: 1 },
      podsLate: 2,
    });
    for (const [late, line] of [
      [0, /^Late pods: +none$/m],
      [undefined, /^(?!Late pods)/],
    ] as const) {
      fixture.datapath.late = late;
      printed = '';
      await ask('status');
      expect(printed).toMatch(line);
      expect(printed.includes('Late pods')).toBe(late !== undefined);
    }
  });

  test('a probe learns from the exit code whether the agent is live, and ready, and from stderr why not', async () => {
    fixture.state.blockers = ['source cri has not synced'];
    expect(await ask('status', '--check', 'live')).toBe(0);
    expect(await ask('status', '--check', 'ready')).toBe(1);
    expect(errors).toBe('nodesentry: source cri has not synced\n');
    fixture.state.blockers = [];
    expect(await ask('status', '--check', 'ready', '--json')).toBe(0);
    expect(printed).toBe('live\n{\n  "status": "ready"\n}\n');
  });
});

test('without an agent every question exits 1 with one line that says what to do', async () => {
  for (const args of [
    ['pods'],
    ['flows'],
    ['flows', '--follow'],
    ['status'],
    ['resolve', '--src', '1.2.3.4:5', '--dst', '[::1]:6'],
    ['explain', 'web-0', '--dst', '[::1]:6'],
  ]) {
    errors = '';
    expect(await run('--run-dir', folder, ...args)).toBe(1);
    expect(errors).toBe(
      `nodesentry: no agent answers at ${folder}/http.sock: start it with "nodesentry agent" or name its --run-dir\n`,
    );
  }
  expect(printed).toBe('');
});

test.each([
  [['fly'], "unknown command 'fly'"],
  [['pods', '--colour'], "unknown option '--colour'"],
  [['pods', 'too', 'many'], 'too many arguments'],
  [['resolve', '--src', '1.2.3.4:5'], "required option '--dst <address:port>'"],
  [['resolve', '--src', '1.2.3.4', '--dst', '1.2.3.4:5'], 'expected an address and port'],
  [['flows', '--limit', '0'], 'expected a whole number from 1 to 10000'],
  [['proxy', '--outbound', 'localhost:1'], 'expected an address and port'],
  [['proxy', '--inbound', 'localhost:1'], 'expected an address and port'],
  [['proxy', '--inbound6', '::1:1'], 'expected an address and port'],
  [['proxy', '--log-level', 'loud'], 'Allowed choices are'],
  [['drain'], 'name one pod, or --app, or --all'],
  [['drain', 'web-0', '--all'], 'name one pod, or --app, or --all'],
  [['drain', 'web-0', '--deadline', 'soon'], 'expected a time such as 30s, 5m or 1h'],
  [['resume', '--app', 'web', '--all'], 'name one pod, or --app, or --all'],
  [['config', 'paint'], "unknown command 'paint'"],
  [['status', '--check', 'happy'], 'Allowed choices are live, ready'],
  [['agent', '--node-name', 'a b'], "'--node-name <name>' argument 'a b' is invalid. expected a node name"],
])('wrong usage exits 2 and says what is wrong: %j', async (args, message) => {
  expect(await run(...args)).toBe(2);
  expect(errors).toContain(message);
});

test('a node name from the environment is checked like one from the command line', async () => {
  vi.stubEnv('NODESENTRY_NODE', '');
  try {
    expect(await run('agent')).toBe(2);
    expect(errors).toContain("value '' from env 'NODESENTRY_NODE' is invalid. expected a node name");
  } finally {
    vi.unstubAllEnvs();
  }
});

test('no subcommand is wrong usage; help and version are not', async () => {
  expect(await run()).toBe(2);
  expect(await run('--help')).toBe(0);
  for (const name of ['agent', 'pods', 'flows', 'resolve', 'status', 'cleanup', 'proxy', 'config']) {
    expect(printed).toMatch(new RegExp(`^ {2}${name}\\b`, 'm'));
  }
  printed = '';
  expect(await run('pods', '--help')).toBe(0);
  expect(printed).toContain('--run-dir <dir>');
  printed = '';
  expect(await run('--version')).toBe(0);
  expect(printed).toBe('1.2.3\n');
});

describe('config', () => {
  test('schema prints a JSON Schema', async () => {
    expect(await run('config', 'schema')).toBe(0);
    expect(JSON.parse(printed)).toMatchObject({ type: 'object', properties: { instances: {} } });
  });

  test('check accepts a good file and shows it complete', async () => {
    const file = join(folder, 'config.yaml');
    writeFileSync(file, 'sources: {static: {file: pods.yaml}}\n');
    expect(await run('config', 'check', '--config', file)).toBe(0);
    expect(printed).toBe(`${file}: ok\n`);
    printed = '';
    expect(await run('config', 'check', '--config', file, '--json')).toBe(0);
    expect(JSON.parse(printed)).toMatchObject({
      trustDomain: 'cluster.local',
      interception: { table: 7340 },
    });
  });

  test('check tells each mistake with its line and exits 1', async () => {
    const file = join(folder, 'config.yaml');
    writeFileSync(file, 'sources: {static: {file: pods.yaml}}\nlog: {level: loud}\ncolour: red\n');
    expect(await run('config', 'check', '--config', file)).toBe(1);
    expect(errors).toContain(`${file}:2: log.level: expected`);
    expect(errors).toContain(`${file}:3: colour: unknown key`);
  });
});

test('cleanup under a running agent is refused', async () => {
  const lock = takeLock(folder);
  try {
    expect(await run('cleanup', '--run-dir', folder)).toBe(1);
    expect(errors).toBe(
      `nodesentry: the agent on ${folder} (pid ${process.pid}) is running: stop it first\n`,
    );
  } finally {
    lock.release();
  }
});

test('tables are aligned, and names cannot write to the terminal', () => {
  expect(
    table(
      ['A', 'LONGER'],
      [
        ['xyz', '1'],
        ['', '\u001b[31mred'],
      ],
    ),
  ).toBe(['A    LONGER', 'xyz  1', '-     [31mred'].join('\n'));
});

test('times and durations are short', () => {
  expect(clockTime(new Date(2026, 0, 2, 3, 4, 5, 6).getTime())).toBe('03:04:05.006');
  expect([0, 999, 61_000, 3_600_000, 90_061_000].map(duration)).toEqual([
    '0s',
    '0s',
    '1m 1s',
    '1h 0m',
    '1d 1h',
  ]);
});
