import { mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { hostname, tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterEach, beforeEach, describe, expect, it, vi } from 'vitest';
import { instanceFor } from '../../src/config/config.js';
import { ConfigError } from '../../src/config/errors.js';
import { loadConfig, parseConfig } from '../../src/config/load.js';
import { configJsonSchema } from '../../src/config/schema.js';
import { SELECT_ALL } from '../../src/pods/selection.js';

const FILE = '/etc/nodesentry/config.yaml';

/** The example of design.md, but for `kubernetes`, which has tests of its own below. */
const CONTRACT = `
node: node-a                       # default: the hostname
trustDomain: cluster.local
interception: {mark: 0x40/0x40, table: 7340, rulePriority: 90, failure: closed, enrol: labelled}
sources:
  static: {file: pods.yaml}
  cri: {endpoint: "unix:///run/containerd/containerd.sock"}
instances:
  - {name: payments, apps: [payments], outbound: "127.0.0.1:16001", inbound: "127.0.0.1:16006", owner: {uid: 101}}
  - {name: default, outbound: "127.0.0.1:15001", inbound: "127.0.0.1:15006"}
identity: {rememberSeconds: 60}
runtimes: {handlers: {my-gvisor: runsc}}
api: {allow: [{uid: 0}]}
log: {level: info}
`;

/** Every problem as the user sees it, the file's name left out. */
function mistakes(text: string): string[] {
  try {
    parseConfig(text, FILE);
  } catch (error) {
    expect(error).toBeInstanceOf(ConfigError);
    expect(error).toMatchObject({ code: 'CONFIG_INVALID' });
    return (error as ConfigError).message.split('\n').map((line) => line.replace(`${FILE}:`, ''));
  }
  return [];
}

/** A configuration that is right but for `line`, which stands in line 2. */
function withLine(line: string): string[] {
  return mistakes(`sources: {cri: {}}\n${line}\n`);
}

const local = (port: number) => ({ host: '127.0.0.1', port, family: 4, text: `127.0.0.1:${port}` });

const HEALTH = { checkSeconds: 10, failSeconds: 5 };

/** Of UDP nothing is intercepted that is not named. */
const NO_PORTS = { ports: [], include: undefined, exclude: [] };

describe('a configuration', () => {
  it('as the contract shows it is read in full', () => {
    expect(parseConfig(CONTRACT, FILE)).toEqual({
      node: 'node-a',
      trustDomain: 'cluster.local',
      interception: {
        mark: { value: 0x40, mask: 0x40 },
        table: 7340,
        rulePriority: 90,
        failure: 'closed',
        enrol: 'labelled',
        other: 'pass',
        udpPorts: [],
        splice: 'auto',
        mode: 'intercept',
        selection: { ...SELECT_ALL, udp: { outbound: NO_PORTS, inbound: NO_PORTS } },
      },
      supervision: { by: 'agent' },
      sources: {
        static: { file: '/etc/nodesentry/pods.yaml' },
        cri: { endpoint: 'unix:///run/containerd/containerd.sock' },
      },
      instances: [
        {
          name: 'payments',
          apps: ['payments'],
          outbound: [local(16001)],
          inbound: [local(16006)],
          owner: { uid: 101 },
          health: HEALTH,
        },
        {
          name: 'default',
          apps: undefined,
          outbound: [local(15001)],
          inbound: [local(15006)],
          owner: { uid: 0 },
          health: HEALTH,
        },
      ],
      identity: { rememberSeconds: 60, history: { seconds: 3_600, entries: 100_000 } },
      runtimes: { handlers: { 'my-gvisor': 'runsc' } },
      api: { allow: [{ uid: 0 }], rateLimit: { perSecond: 20_000, burst: 40_000 } },
      metrics: {},
      log: { level: 'info' },
      capacity: {
        mode: 'report',
        base: { cpuMillis: 0, memoryBytes: 0 },
        headroomPercent: 20,
        hysteresis: { downSeconds: 300, percent: 10 },
        limit: {},
      },
    });
  });

  it('is of the node that it names, else of the one that the caller names', () => {
    expect(parseConfig('sources: {cri: {}}', FILE, 'node-7').node).toBe('node-7');
    expect(parseConfig('{node: node-a, sources: {cri: {}}}', FILE, 'node-7').node).toBe('node-a');
  });

  it('is of the node that its container is told of, whatever the host name', () => {
    vi.stubEnv('NODESENTRY_NODE', 'node-8');
    expect(parseConfig('sources: {cri: {}}', FILE).node).toBe('node-8');
    vi.stubEnv('NODESENTRY_NODE', '');
    expect(parseConfig('sources: {cri: {}}', FILE).node).toBe(hostname());
    vi.unstubAllEnvs();
  });

  it('with one source has the defaults of the contract for all the rest', () => {
    const defaults = parseConfig('sources: {cri: {}}', FILE);
    const contract = parseConfig(CONTRACT, FILE);
    expect(defaults).toEqual({
      ...contract,
      node: hostname(),
      sources: { cri: contract.sources.cri },
      instances: contract.instances.slice(1),
      runtimes: { handlers: {} },
    });
  });

  it('takes one address or a list, one per family, in both directions or one', () => {
    const { instances } = parseConfig(
      `sources: {cri: {}}
instances:
  - {name: a, outbound: ["127.0.0.1:1", "[::1]:1"]}
  - {name: b, inbound: "[::]:15001", owner: {gid: 5, exe: /usr/bin/envoy, cgroup: /envoy.slice}}
`,
      FILE,
    );
    expect(instances).toEqual([
      {
        name: 'a',
        apps: undefined,
        outbound: [local(1), { host: '::1', port: 1, family: 6, text: '[::1]:1' }],
        inbound: [],
        owner: { uid: 0 },
        health: HEALTH,
      },
      {
        name: 'b',
        apps: undefined,
        outbound: [],
        inbound: [{ host: '::', port: 15001, family: 6, text: '[::]:15001' }],
        owner: { gid: 5, exe: '/usr/bin/envoy', cgroup: '/envoy.slice' },
        health: HEALTH,
      },
    ]);
  });

  it('takes callers by uid, gid and executable', () => {
    const { api } = parseConfig(
      'sources: {cri: {}}\napi: {allow: [{uid: 1}, {gid: 2}, {exe: /usr/sbin/envoy}]}',
      FILE,
    );
    expect(api.allow).toEqual([{ uid: 1 }, { gid: 2 }, { exe: '/usr/sbin/envoy' }]);
  });

  it('takes what a caller may ask, and how much', () => {
    const { api } = parseConfig(
      'sources: {cri: {}}\napi: {allow: [{uid: 1, scopes: [resolve, watch]}], rateLimit: {burst: 5}}',
      FILE,
    );
    expect(api).toEqual({
      allow: [{ uid: 1, scopes: ['resolve', 'watch'] }],
      rateLimit: { perSecond: 20_000, burst: 5 },
    });
  });

  it('takes the CNI source alone, with the usual places of a node', () => {
    expect(parseConfig('sources: {cni: {}}', FILE).sources).toEqual({
      cni: {
        install: false,
        confDir: '/etc/cni/net.d',
        binDir: '/opt/cni/bin',
        stateDir: '/var/lib/nodesentry/cni',
        failure: 'closed',
        timeoutMs: 10_000,
      },
    });
  });

  it('takes Kubernetes in-cluster, or by a kubeconfig beside the configuration', () => {
    const kubernetes = (text: string) =>
      parseConfig(`sources: {kubernetes: ${text}}`, FILE).sources.kubernetes;
    const told = { events: true, removeStartupTaint: true, annotateNode: true };
    expect(kubernetes('{}')).toEqual(told);
    expect(kubernetes('{kubeconfig: kubelet.conf}')).toEqual({
      kubeconfig: '/etc/nodesentry/kubelet.conf',
      ...told,
    });
    expect(kubernetes('{kubeconfig: /k, events: false}')).toEqual({
      kubeconfig: '/k',
      ...told,
      events: false,
    });
    expect(mistakes('sources: {kubernetes: {annotateNode: 1}}')).toEqual([
      '1: sources.kubernetes.annotateNode: expected true or false, got 1',
    ]);
    expect(mistakes('sources: {kubernetes: {kubeconfig: ""}}')).toEqual([
      '1: sources.kubernetes.kubeconfig: expected the path of a kubeconfig file, got ""',
    ]);
  });
});

describe('a mistake is told with its line and field', () => {
  it.each([
    ['install: yes please', 'install: expected true or false, got "yes please"'],
    ['confDir: net.d', 'confDir: expected the absolute path of a folder, got "net.d"'],
    ['binDir: 7', 'binDir: expected the absolute path of a folder, got 7'],
    ['failure: ajar', 'failure: expected closed or open, got "ajar"'],
    ['timeoutMs: 0', 'timeoutMs: expected a whole number from 1 to 600000, got 0'],
  ])('sources.cni: %s', (line, message) => {
    expect(mistakes(`sources:\n  cni: {${line}}\n`)).toEqual([`2: sources.cni.${message}`]);
  });

  it.each([
    ['nodes: a', '2: nodes: unknown key'],
    ['log: {levle: info}', '2: log.levle: unknown key'],
    ['node: 7', '2: node: expected a node name, got 7'],
    [
      'trustDomain: Cluster.local',
      '2: trustDomain: expected a trust domain: at most 255 small letters, digits, dots, dashes and underscores, got "Cluster.local"',
    ],
    ['interception: {failure: ajar}', '2: interception.failure: expected closed or open, got "ajar"'],
    ['interception: {enrol: some}', '2: interception.enrol: expected labelled or all, got "some"'],
    [
      'interception: {rulePriority: 0}',
      '2: interception.rulePriority: expected a whole number from 1 to 32765, got 0',
    ],
    [
      'interception: {rulePriority: 32766}',
      '2: interception.rulePriority: expected a whole number from 1 to 32765, got 32766',
    ],
    [
      'identity: {rememberSeconds: 0}',
      '2: identity.rememberSeconds: expected a whole number from 1 to 3600, got 0',
    ],
    [
      'identity: {history: {seconds: 0}}',
      '2: identity.history.seconds: expected a whole number from 1 to 86400, got 0',
    ],
    [
      'identity: {history: {entries: 999}}',
      '2: identity.history.entries: expected a whole number from 1000 to 1000000, got 999',
    ],
    [
      'identity: {rememberSeconds: 3601}',
      '2: identity.rememberSeconds: expected a whole number from 1 to 3600, got 3601',
    ],
    [
      'log: {level: loud}',
      '2: log.level: expected one of fatal, error, warn, info, debug, trace, silent, got "loud"',
    ],
    [
      'runtimes: {handlers: {my-gvisor: gvisor}}',
      '2: runtimes.handlers.my-gvisor: expected one of runc, runsc, rund, unknown, got "gvisor"',
    ],
    [
      'metrics: {listen: 9464}',
      '2: metrics.listen: expected an address and a port such as 0.0.0.0:9464 or [::]:9464, got 9464',
    ],
    [
      'metrics: {listen: "localhost:9464"}',
      '2: metrics.listen: expected an address and a port such as 0.0.0.0:9464 or [::]:9464, got "localhost:9464"',
    ],
    ['supervision: {by: systemd}', '2: supervision.by: expected agent or separate, got "systemd"'],
    ['instances: []', '2: instances: expected at least one instance, got an empty list'],
    [
      'instances: [{name: a}]',
      '2: instances[0]: an instance needs at least one of outbound and inbound, or announced; one with ports may have outboundUdp alone',
    ],
    [
      'instances: [{outbound: "127.0.0.1:1"}]',
      '2: instances[0].name: expected a name of at most 63 small letters, digits, dashes and dots, got nothing',
    ],
    [
      'instances: [{name: a, outbound: "127.0.0.1:1", inboundUdp: "127.0.0.1:2"}]',
      '2: instances[0].inboundUdp: what pods are sent is intercepted by UDP only where it is by TCP: inbound is needed, too',
    ],
    [
      'interception: {outboundUdp: all}',
      '2: interception.outboundUdp: expected none or ports from 1 to 65535 such as 53,443, got "all"',
    ],
    [
      'instances: [{name: a, apps: [], outbound: "127.0.0.1:1"}]',
      '2: instances[0].apps: expected at least one app (leave apps out to serve every app), got an empty list',
    ],
    [
      'instances: [{name: a, outbound: "127.0.0.1:0"}]',
      '2: instances[0].outbound: expected an address and a port such as 127.0.0.1:15001 or [::1]:15001, got "127.0.0.1:0"',
    ],
    [
      'instances: [{name: a, outbound: ["127.0.0.1:1", "localhost:2"]}]',
      '2: instances[0].outbound[1]: expected an address and a port such as 127.0.0.1:15001 or [::1]:15001, got "localhost:2"',
    ],
    [
      'instances: [{name: a, inbound: ["127.0.0.1:1", "127.0.0.2:2"]}]',
      '2: instances[0].inbound[1]: one address per family, but 127.0.0.2:2 is the second of IPv4',
    ],
    [
      'instances: [{name: a, inbound: 15001}]',
      '2: instances[0].inbound: expected an address and a port such as 127.0.0.1:15001 or [::1]:15001, or a list of one per family, got 15001',
    ],
    [
      'instances: [{name: a, outbound: "127.0.0.1:1", owner: {}}]',
      '2: instances[0].owner: expected at least one of uid, gid, exe and cgroup, got a mapping',
    ],
    [
      'instances: [{name: a, outbound: "127.0.0.1:1", owner: {uid: -1}}]',
      '2: instances[0].owner.uid: expected a whole number from 0 to 4294967294, got -1',
    ],
    [
      'instances: [{name: a, outbound: "127.0.0.1:1", owner: {exe: envoy}}]',
      '2: instances[0].owner.exe: expected the absolute path of an executable, got "envoy"',
    ],
    [
      'instances: [{name: a, outbound: "127.0.0.1:1", health: {failSeconds: 0}}]',
      '2: instances[0].health.failSeconds: expected a whole number from 1 to 3600, got 0',
    ],
    [
      'api: {allow: [{uid: 0, scopes: [all]}]}',
      '2: api.allow[0]: expected exactly one of uid, gid and exe: a whole number, or the absolute path of an executable; with it perhaps scopes, of resolve, watch and admin, got a mapping',
    ],
    [
      'api: {rateLimit: {perSecond: 0}}',
      '2: api.rateLimit.perSecond: expected a whole number from 1 to 1000000, got 0',
    ],
    ['api: {allow: []}', '2: api.allow: expected at least one caller, got an empty list'],
    [
      'api: {allow: [{uid: 0, gid: 0}]}',
      '2: api.allow[0]: expected exactly one of uid, gid and exe: a whole number, or the absolute path of an executable; with it perhaps scopes, of resolve, watch and admin, got a mapping',
    ],
    [
      'api: {allow: [{exe: envoy}]}',
      '2: api.allow[0].exe: expected the absolute path of an executable, got "envoy"',
    ],
    [
      'api: {allow: [{uid: root}]}',
      '2: api.allow[0]: expected exactly one of uid, gid and exe: a whole number, or the absolute path of an executable; with it perhaps scopes, of resolve, watch and admin, got a mapping',
    ],
  ])('%s', (line, expected) => {
    expect(withLine(line)).toEqual([expected]);
  });

  it.each([
    '0x80/0x40',
    '0x40',
    '0/0',
    '0x40/0',
    '0x1ffffffff/0x1ffffffff',
    '4294967296/4294967296',
    '-1/0x40',
    'x/y',
  ])('mark %s', (mark) => {
    expect(withLine(`interception: {mark: "${mark}"}`)).toEqual([
      `2: interception.mark: expected value/mask such as 0x40/0x40, both of 1 to 32 bits and the value within the mask, got "${mark}"`,
    ]);
  });

  it.each([0, 253, 254, 255, 4294967296, 1.5])('table %s', (table) => {
    expect(withLine(`interception: {table: ${table}}`)).toEqual([
      expect.stringMatching(
        /^2: interception\.table: expected a routing table from 1 to 4294967295 .*, got [\d.]+$/,
      ),
    ]);
  });

  it.each([
    ['"127.0.0.1:7"', '"127.0.0.1:7"', '127.0.0.1:7 overlaps 127.0.0.1:7'],
    ['"0.0.0.0:7"', '"127.0.0.1:7"', '127.0.0.1:7 overlaps 0.0.0.0:7'],
    ['"127.0.0.1:7"', '"[::]:7"', '[::]:7 overlaps 127.0.0.1:7'],
    ['"[::1]:7"', '"[::]:7"', '[::]:7 overlaps [::1]:7'],
  ])('%s and %s in two instances', (first, second, expected) => {
    expect(withLine(`instances:\n- {name: a, inbound: ${first}}\n- {name: b, outbound: ${second}}`)).toEqual([
      `4: instances[1].outbound: ${expected}, the inbound of instance a`,
    ]);
  });

  it.each([
    ['"127.0.0.1:7"', '"127.0.0.2:7"'],
    ['["0.0.0.0:7", "[::]:7"]', '["0.0.0.0:8", "[::]:8"]'],
    ['"127.0.0.1:7"', '["127.0.0.1:8", "[::]:7"]'],
  ])('but not %s and %s, which are different sockets', (first, second) => {
    expect(withLine(`instances:\n- {name: a, inbound: ${first}}\n- {name: b, outbound: ${second}}`)).toEqual(
      [],
    );
  });

  it('metrics are answered at an address of their own', () => {
    expect(withLine('metrics: {listen: "127.0.0.1:15001"}')).toEqual([
      '2: metrics.listen: 127.0.0.1:15001 overlaps 127.0.0.1:15001, the outbound of instance default',
    ]);
    expect(withLine('metrics: {listen: "[::]:15006"}')).toEqual([
      '2: metrics.listen: [::]:15006 overlaps 127.0.0.1:15006, the inbound of instance default',
    ]);
    expect(
      parseConfig('{sources: {cri: {}}, metrics: {listen: "0.0.0.0:9464"}}', FILE).metrics.listen,
    ).toEqual({ host: '0.0.0.0', port: 9464, family: 4, text: '0.0.0.0:9464' });
  });

  const run = (text: string) =>
    withLine(`instances: [{name: a, outbound: "127.0.0.1:1", command: [/bin/a], run: {${text}}}]`);

  it.each([
    ['graceSeconds: -1', 'graceSeconds: expected a whole number from 0 to 86400, got -1'],
    [
      'stopSignal: SIGKILL',
      'stopSignal: expected one of SIGTERM, SIGINT, SIGQUIT, SIGUSR1, SIGUSR2, got "SIGKILL"',
    ],
    ['stopSeconds: long', 'stopSeconds: expected a whole number from 0 to 3600, got "long"'],
    ['directory: here', 'directory: expected the absolute path of a folder, got "here"'],
    ['user: root', 'user: expected a whole number from 0 to 4294967294, got "root"'],
    ['sockets: stolen', 'sockets: expected handed or own, got "stolen"'],
    ['environment: {A: 1}', 'environment.A: expected a text in quotes, got 1'],
    ['limits: {memory: 256MB}', 'limits.memory: expected an amount of memory such as 256Mi, got "256MB"'],
    [
      'limits: {cpu: "0.001"}',
      'limits.cpu: expected a share of processors such as "0.5" or 500m, at least 10m, got "0.001"',
    ],
    ['limits: {pids: 0}', 'limits.pids: expected a whole number from 1 to 4194304, got 0'],
    ['colour: red', 'colour: unknown key'],
  ])('run: {%s}', (text, message) => {
    expect(run(text)).toEqual([`2: instances[0].run.${message}`]);
  });

  it.each([
    [
      'command: haproxy',
      'command: expected a list of an absolute path and its arguments such as [/usr/sbin/haproxy, -db], got "haproxy"',
    ],
    ['command: [haproxy]', 'command[0]: expected the absolute path of an executable, got "haproxy"'],
    [
      'command: []',
      'command: expected a list of an absolute path and its arguments such as [/usr/sbin/haproxy, -db], got an empty list',
    ],
    ['run: {user: 0}', 'run: run says how a command is started, and there is no command'],
  ])('an instance with %s', (text, message) => {
    expect(withLine(`instances: [{name: a, outbound: "127.0.0.1:1", ${text}}]`)).toEqual([
      `2: instances[0].${message}`,
    ]);
  });

  it('a command has its defaults, and limits are numbers', () => {
    const [plain, limited] = parseConfig(
      `sources: {cri: {}}
instances:
- {name: a, outbound: "127.0.0.1:1", command: [/bin/a, -b]}
- {name: b, outbound: "127.0.0.1:2", command: [/bin/b], run: {limits: {memory: 2Gi, cpu: 1.5, pids: 9}}}`,
      FILE,
    ).instances;
    expect(plain?.run).toEqual({
      command: ['/bin/a', '-b'],
      environment: {},
      directory: '/',
      sockets: 'handed',
      graceSeconds: 30,
      stopSeconds: 10,
      stopSignal: 'SIGTERM',
      limits: {},
    });
    expect(limited?.run?.limits).toEqual({ memory: 2_147_483_648, cpu: 1_500, pids: 9 });
  });

  it('names of instances are given once', () => {
    expect(
      withLine('instances:\n- {name: a, inbound: "127.0.0.1:1"}\n- {name: a, inbound: "127.0.0.1:2"}'),
    ).toEqual(['4: instances[1].name: a is the name of an instance before it']);
  });

  it('a source is needed', () => {
    const none = 'sources: at least one source is needed: static, cri, kubernetes or cni';
    expect(mistakes('node: a\n')).toEqual([`1: ${none}`]);
    expect(mistakes('node: a\nsources: {}\n')).toEqual([`2: ${none}`]);
    expect(mistakes('')).toEqual([expect.stringContaining('expected a mapping, got nothing')]);
    expect(mistakes('sources: {static: {}}')).toEqual([
      '1: sources.static.file: expected the path of a YAML file, got nothing',
    ]);
    expect(mistakes('sources: {cri: {endpoint: /run/x.sock}}')).toEqual([
      '1: sources.cri.endpoint: expected a Unix socket such as unix:///run/containerd/containerd.sock, got "/run/x.sock"',
    ]);
  });

  it('the account of pods of the CRI is the name of one', () => {
    const cri = 'sources: {cri: {serviceAccount: build-bot}}';
    expect(parseConfig(cri, FILE).sources.cri?.serviceAccount).toBe('build-bot');
    for (const wrong of ['""', 'Default', 'a/b', '../x', '-a']) {
      expect(mistakes(`sources: {cri: {serviceAccount: ${wrong}}}`)).toEqual([
        expect.stringMatching(
          /^1: sources\.cri\.serviceAccount: expected the name of a service account, got "/,
        ),
      ]);
    }
  });

  it('several at once come in the order of the file', () => {
    expect(
      mistakes('sources: {cri: {}}\nlog: {level: loud}\n\nnode: ""\ninterception:\n  table: 254\n'),
    ).toEqual([
      expect.stringMatching(/^2: log\.level: /),
      expect.stringMatching(/^4: node: /),
      expect.stringMatching(/^6: interception\.table: /),
    ]);
  });

  it('YAML that is none is told by its line', () => {
    expect(mistakes('sources: {cri: {}}\nlog: {level: info\n')).toEqual([expect.stringMatching(/^[23]: \S/)]);
    expect(mistakes('node: a\nnode: b\nsources: {cri: {}}')).toEqual([
      expect.stringMatching(/^2: Map keys must be unique/),
    ]);
  });
});

describe('a configuration file', () => {
  let folder: string;
  beforeEach(() => {
    folder = mkdtempSync(join(tmpdir(), 'nodesentry-config-'));
  });
  afterEach(() => {
    rmSync(folder, { recursive: true, force: true });
  });

  it('is read, and a static file beside it is found', () => {
    const path = join(folder, 'config.yaml');
    writeFileSync(path, CONTRACT);
    expect(loadConfig(path).sources.static).toEqual({ file: join(folder, 'pods.yaml') });
  });

  it('that is missing is one clear error', () => {
    const path = join(folder, 'none.yaml');
    expect(() => loadConfig(path)).toThrow(
      `${path}: the configuration cannot be read: ENOENT: no such file or directory, open '${path}'`,
    );
  });
});

describe('instanceFor', () => {
  const config = parseConfig(
    `sources: {cri: {}}
instances:
  - {name: payments, apps: [payments, ledger], outbound: "127.0.0.1:1"}
  - {name: default, outbound: "127.0.0.1:2"}
  - {name: late, apps: [web], outbound: "127.0.0.1:3"}
`,
    FILE,
  );

  it('takes the first that matches', () => {
    expect(instanceFor(config, 'ledger')).toMatchObject({ name: 'payments' });
    expect(instanceFor(config, 'web')).toMatchObject({ name: 'default' });
    expect(instanceFor(config, undefined)).toMatchObject({ name: 'default' });
  });

  it('finds none where every instance is for other apps', () => {
    const instances = config.instances.slice(0, 1);
    expect(instanceFor({ instances }, 'web')).toBeUndefined();
    expect(instanceFor({ instances }, undefined)).toBeUndefined();
  });
});

it('the JSON schema describes the file as it is written', () => {
  const schema = configJsonSchema() as {
    properties: Record<string, { properties?: object }>;
    additionalProperties: boolean;
  };
  expect(Object.keys(schema.properties)).toEqual([
    'node',
    'trustDomain',
    'interception',
    'sources',
    'instances',
    'supervision',
    'identity',
    'runtimes',
    'api',
    'lifecycle',
    'metrics',
    'log',
    'capacity',
  ]);
  expect(schema.additionalProperties).toBe(false);
  expect(schema.properties.interception?.properties).toMatchObject({
    mark: { type: 'string', default: '0x40/0x40' },
  });
});
