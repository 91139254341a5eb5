import { execFile } from 'node:child_process';
import { once } from 'node:events';
import { mkdirSync, writeFileSync } from 'node:fs';
import { createServer } from 'node:net';
import { join } from 'node:path';
import { afterEach, beforeEach, describe, expect, test } from 'vitest';
import { DEFAULT_OBJECTS } from '../../src/cli/options.js';
import { parseConfig } from '../../src/config/load.js';
import { type CheckResult, runChecks } from '../../src/doctor/check.js';
import { configurationChecks, datagramListeners, listeners } from '../../src/doctor/configuration.js';
import { refusals } from '../../src/doctor/firewall.js';
import { type HookKernel, type HookLink, hookFindings } from '../../src/doctor/hooks.js';
import { markUses } from '../../src/doctor/marks.js';
import { neighbourChecks } from '../../src/doctor/neighbours.js';
import { bpffsAt, nodeChecks } from '../../src/doctor/node.js';
import { readRulesets } from '../../src/doctor/rulesets.js';
import { type Command, CommandError, runCommand } from '../../src/doctor/system.js';
import { CLSACT } from '../../src/kernel/clsact.js';
import { attachClsact, attachTcx, BpfObject, programInfo, queryTcx } from '../../src/native/bpf.js';
import { type ListeningSocket, tcpListeners, udpListeners } from '../../src/native/sockets.js';
import { Cleanup, loadProbe, Netns, startProcess, temporaryBpffs, temporaryFolder } from './native-lab.js';

const MAIN = join(import.meta.dirname, '../../src/cli/main.ts');
const PLACE = { mark: { value: 0x40, mask: 0x40 }, table: 7340, rulePriority: 90 };
const BIT = 0x40;

let cleanup: Cleanup;
let netns: Netns;
let folder: string;
beforeEach(() => {
  cleanup = new Cleanup();
  netns = cleanup.owned(new Netns());
  folder = temporaryFolder(cleanup);
  writeFileSync(join(folder, 'pods.yaml'), 'pods: []\n');
  configure('instances: [{name: default, outbound: "127.0.0.1:15001"}]');
});
afterEach(() => cleanup.run());

function configure(text: string): void {
  writeFileSync(join(folder, 'config.yaml'), `sources: {static: {file: pods.yaml}}\n${text}\n`);
}

const inside: Command = (command, args, input) =>
  runCommand('nsenter', [`--net=${netns.path}`, command, ...args], input);

interface Output {
  readonly code: number;
  readonly stdout: string;
  readonly stderr: string;
}

/** The command itself, in the network namespace of the test; `wrapper` is a command that runs it. */
function doctor(words: readonly string[] = [], wrapper: readonly string[] = []): Promise<Output> {
  const script = `import { main } from ${JSON.stringify(MAIN)}; process.exitCode = await main(process.argv.slice(1));`;
  const node = [process.execPath, '--import', 'tsx', '--input-type=module', '-e', script, '--'];
  const options = ['--config', join(folder, 'config.yaml'), '--bpffs', join(folder, 'bpf')];
  const args = [`--net=${netns.path}`, ...wrapper, ...node, 'doctor', ...words, ...options];
  return new Promise((resolve, reject) => {
    execFile('nsenter', args, (error, stdout, stderr) => {
      if (error !== null && typeof error.code !== 'number') {
        reject(error);
      } else {
        resolve({ code: error === null ? 0 : Number(error.code), stdout, stderr });
      }
    });
  });
}

async function lines(wrapper?: readonly string[]): Promise<CheckResult[]> {
  return JSON.parse((await doctor(['--json'], wrapper)).stdout) as CheckResult[];
}

const named = (results: readonly CheckResult[], name: string): CheckResult[] =>
  results.filter((result) => result.name === name);

describe('the command', () => {
  test('finds nothing wrong with a plain node, in aligned lines, and exits with 0', async () => {
    const { code, stdout, stderr } = await doctor();
    expect({ code, stderr }).toEqual({ code: 0, stderr: '' });
    expect(stdout).not.toContain('FAIL');
    const starts = stdout
      .split('\n')
      .filter((line) => /^(ok {2}|warn) /.test(line))
      .map((line) => /^.{4} {2}\S+(?: \S+)* +/.exec(line)?.[0].length);
    expect(starts.length).toBeGreaterThan(15);
    expect(stdout).toMatch(
      /^warn {2}listeners +default: outbound IPv4: nobody listens at 127\.0\.0\.1:15001/m,
    );
    expect(stdout).toMatch(/^ +→ start the proxy; until then connections are reset \(failure: closed\)$/m);
    expect(stdout).toMatch(/^\d+ ok, \d+ to look at, 0 failed$/m);
  });

  test('tells which capabilities are missing in one line, goes on, and exits with 1', async () => {
    const without = ['setpriv', '--bounding-set', '-net_admin,-bpf,-perfmon,-sys_admin,-sys_ptrace'];
    const { code, stderr } = await doctor([], without);
    expect(code).toBe(1);
    expect(stderr).toMatch(/^nodesentry: \d+ of \d+ checks failed\n$/);
    const results = await lines(without);
    expect(named(results, 'capabilities')).toMatchObject([
      {
        status: 'fail',
        found: 'missing: CAP_NET_ADMIN, CAP_SYS_PTRACE, CAP_SYS_ADMIN, CAP_PERFMON, CAP_BPF',
      },
    ]);
    expect(named(results, 'listeners').length).toBeGreaterThan(0);
    expect(named(results, 'policy rules')).toMatchObject([{ status: 'ok' }]);
    expect(results.filter(({ status, advice }) => status !== 'ok' && advice === '')).toEqual([]);
  });

  test('names a proxy that listens, settings that make replies loop, and mistakes in the configuration', async () => {
    configure('instances: [{name: default, outbound: "[::]:15001", inbound: "127.0.0.1:15006"}]');
    const server = `import { createServer } from 'node:net';
      createServer().listen(15001, '::', () => console.log('{}'));`;
    const node = [process.execPath, '--input-type=module', '-e', server];
    await startProcess(cleanup, 'nsenter', `--net=${netns.path}`, ...node);
    netns.exec('sysctl', '-qw', 'net.ipv4.fwmark_reflect=1', 'net.ipv4.tcp_fwmark_accept=1');
    const results = await lines();
    expect(named(results, 'listeners').map(({ status, found }) => `${status} ${found}`)).toEqual([
      'ok default: outbound IPv4 at [::]:15001',
      'ok default: outbound IPv6 at [::]:15001',
      'warn default: inbound IPv4: nobody listens at 127.0.0.1:15006',
      'warn default: inbound: no IPv6 address',
    ]);
    expect(named(results, 'mark inheritance').map(({ status, advice }) => `${status} ${advice}`)).toEqual([
      'fail sysctl -w net.ipv4.tcp_fwmark_accept=0',
      'fail sysctl -w net.ipv4.fwmark_reflect=0',
    ]);
    configure('nonsense: 1\nnode: 7');
    const wrong = named(await lines(), 'configuration');
    expect(wrong.map(({ status }) => status)).toEqual(['fail', 'fail']);
    expect(wrong.map(({ found }) => found).join('\n')).toMatch(
      /config\.yaml:2: nonsense.*config\.yaml:3: node/s,
    );
  });

  test('looks at the API server and at the CNI chain where they are sources', async () => {
    const cni = `{confDir: ${join(folder, 'net.d')}, binDir: ${join(folder, 'bin')}}`;
    const sources = `{kubernetes: {kubeconfig: none.yaml}, cni: ${cni}}`;
    writeFileSync(
      join(folder, 'config.yaml'),
      `sources: ${sources}\ninstances: [{name: default, outbound: "127.0.0.1:15001"}]\n`,
    );
    const { code, stdout } = await doctor(['--json', '--run-dir', join(folder, 'run')]);
    const results = JSON.parse(stdout) as CheckResult[];
    const told = ['Kubernetes', 'CNI chain', 'CNI plugin', 'CNI socket'].flatMap((name) =>
      named(results, name),
    );
    expect(code).toBe(1);
    expect(told.map(({ status, found }) => `${status} ${found}`)).toEqual([
      expect.stringMatching(/^fail sources\.kubernetes\.kubeconfig: .*none\.yaml: not a kubeconfig/),
      `fail ${join(folder, 'net.d')} has no network configuration`,
      `warn ${join(folder, 'bin', 'nodesentry-cni')} does not exist`,
      expect.stringContaining(`warn no agent answers at ${join(folder, 'run', 'cni.sock')}: `),
    ]);
  });

  test("fails on others' rules and routes in our table, and warns of their marks and of our priority", async () => {
    netns.ip('rule add fwmark 0xca6c lookup 100 priority 500');
    netns.ip('rule add fwmark 0x100/0xff00 lookup 101 priority 501');
    netns.ip('rule add to 10.0.0.0/8 lookup 7340 priority 90');
    netns.ip('-6 rule add fwmark 0x40/0x40 lookup 7340 priority 90 protocol 73');
    netns.ip('-6 route add blackhole fd00::/8 table 7340');
    const results = await lines();
    expect(named(results, 'policy rules').map(({ status, found }) => `${status} ${found}`)).toEqual([
      'fail IPv4 rule at priority 90 of somebody else uses table 7340',
      'warn IPv4 rule at priority 90 of somebody else has our priority',
      'warn IPv4 rule at priority 500 of somebody else matches 0xca6c/0xffffffff, which has bits of our 0x40/0x40',
    ]);
    expect(named(results, 'table 7340')).toMatchObject([
      { status: 'fail', found: 'IPv6 routes of somebody else: 1' },
    ]);
  });
});

describe('the node', () => {
  test('a check that breaks is a line of its own, and the others go on', async () => {
    const broken = nodeChecks('/nowhere', DEFAULT_OBJECTS, () => {
      throw new Error('no /proc');
    });
    const results = await runChecks(broken);
    expect(named(results, 'forwarding')).toMatchObject([
      { status: 'fail', found: 'could not be checked: no /proc' },
    ]);
    expect(named(results, 'BTF')).toMatchObject([{ status: 'ok' }]);
  });

  test('reads rp_filter and src_valid_mark of every pod interface', async () => {
    const settings: Record<string, string> = {
      'net/ipv4/conf/all/rp_filter': '1',
      'net/ipv4/conf/veth1/rp_filter': '0',
      'net/ipv4/conf/veth2/rp_filter': '1',
      'net/ipv4/conf/veth2/src_valid_mark': '1',
    };
    const checks = nodeChecks(
      '/nowhere',
      DEFAULT_OBJECTS,
      (name) => settings[name],
      inside,
      async () => ['veth1', 'veth2'],
    );
    const found = named(await runChecks(checks), 'reverse path');
    expect(found.map(({ status }) => status)).toEqual(['ok', 'ok']);
    expect(found[0]?.found).toContain('rp_filter 1 on all, veth2; 0 on veth1: every value works');
    expect(found[1]?.found).toContain('src_valid_mark 1 on veth2: the agent sets accept_local');
  });

  test('says whether nft is missing, or the kernel has not what our table needs', async () => {
    const nft = async (command: Command) =>
      named(await runChecks(nodeChecks('/nowhere', DEFAULT_OBJECTS, undefined, command)), 'nftables');
    expect(await nft(inside)).toMatchObject([{ status: 'ok' }]);
    expect(netns.exec('nft', 'list', 'tables')).toBe('');
    const missing: Command = (command) => runCommand(`${command}-that-is-not-there`, []);
    expect(await nft(missing)).toMatchObject([{ status: 'fail', found: 'no nft command' }]);
    const old: Command = async (_command, args) => {
      if (args.includes('-c')) {
        throw new CommandError('COMMAND_FAILED', 'nft -c -f -: Could not process rule');
      }
      return '';
    };
    expect(await nft(old)).toMatchObject([{ status: 'fail', found: 'nft -c -f -: Could not process rule' }]);
  });

  test.each([
    { there: false, missing: true, status: 'ok', found: 'not in use' },
    { there: true, missing: false, status: 'ok', found: 'keeps a service of its own' },
    { there: true, missing: true, status: 'fail', found: 'no ipvsadm command' },
  ])(
    'IPVS (there: $there, ipvsadm missing: $missing) is $status',
    async ({ there, missing, status, found }) => {
      const command: Command = () =>
        missing
          ? Promise.reject(new CommandError('COMMAND_MISSING', 'ipvsadm is not installed'))
          : Promise.resolve('');
      const checks = nodeChecks(
        '/nowhere',
        DEFAULT_OBJECTS,
        undefined,
        command,
        undefined,
        undefined,
        () => there,
      );
      const [result] = named(await runChecks(checks), 'IPVS');
      expect(result).toMatchObject({ status, found: expect.stringContaining(found) });
    },
  );

  test('knows where a bpffs is, where the agent would mount one, and what a newer agent left', () => {
    const bpffs = temporaryBpffs(cleanup);
    expect(bpffsAt(join(bpffs, 'nodesentry'), DEFAULT_OBJECTS)).toMatchObject({
      status: 'ok',
      found: `mounted at ${bpffs}`,
    });
    expect(bpffsAt(join(folder, 'bpf'), DEFAULT_OBJECTS)).toMatchObject({ status: 'ok' });
    expect(bpffsAt(join(folder, 'a/b/c'), DEFAULT_OBJECTS)).toMatchObject({ status: 'fail' });
    expect(bpffsAt(join(folder, 'bpf'), DEFAULT_OBJECTS, 'nodev\tproc\n')).toMatchObject({
      found: 'not in this kernel',
    });
    mkdirSync(join(bpffs, 'nodesentry/v2'), { recursive: true });
    expect(bpffsAt(join(bpffs, 'nodesentry'), DEFAULT_OBJECTS).found).toContain('belongs to a newer agent');
  });
});

describe('the configuration', () => {
  test('a CRI endpoint must answer and a static file must be readable', async () => {
    const socket = join(folder, 'cri.sock');
    const server = createServer().listen(socket);
    await once(server, 'listening');
    try {
      const check = async (endpoint: string, file: string) => {
        const text = `sources: {static: {file: "${file}"}, cri: {endpoint: "unix://${endpoint}"}}`;
        const results = await runChecks(configurationChecks(parseConfig(text, join(folder, 'c.yaml'))));
        return results.filter(({ name }) => name !== 'listeners').map(({ status }) => status);
      };
      expect(await check(socket, 'pods.yaml')).toEqual(['ok', 'ok']);
      expect(await check(`${socket}.gone`, 'gone.yaml')).toEqual(['fail', 'fail']);
      expect(await check(join(folder, 'pods.yaml'), '.')).toEqual(['fail', 'fail']);
    } finally {
      server.close();
    }
  });

  test('says for each instance and family what becomes of connections', () => {
    const text = `sources: {static: {file: pods.yaml}}
interception: {failure: open}
instances: [{name: a, apps: [a], outbound: ["127.0.0.1:1", "[::1]:1"]}, {name: b, outbound: "[::]:2"}]`;
    const config = parseConfig(text, 'c.yaml');
    const socket: ListeningSocket = {
      family: 6,
      address: '::',
      port: 2,
      inode: 1,
      uid: 0,
      cookie: 1n,
      v6only: true,
    };
    expect(netns.run(() => tcpListeners())).toEqual([]);
    expect(listeners(config, [socket]).map(({ status, found }) => `${status} ${found}`)).toEqual([
      'warn a: outbound IPv4: nobody listens at 127.0.0.1:1',
      'warn a: outbound IPv6: nobody listens at [::1]:1',
      'ok a: outbound only, for instances.inbound names no address',
      'warn b: outbound IPv4: nobody listens at [::]:2',
      'ok b: outbound IPv6 at [::]:2',
      'ok b: outbound only, for instances.inbound names no address',
    ]);
    expect(listeners(config, [])[0]?.advice).toContain('go straight through (failure: open)');
    const foreign = listeners(config, [{ ...socket, uid: 65_534 }]).find(({ status }) => status === 'fail');
    expect(foreign).toMatchObject({
      status: 'fail',
      found: expect.stringContaining('b: outbound: [::]:2 is held by uid 65534, who is not its owner'),
      advice: 'if that is the proxy, set "owner: {uid: 65534}" in the instance',
    });
  });
});

describe('sockets that take datagrams', () => {
  const text = (more: string) => `sources: {static: {file: pods.yaml}}
${more}
instances: [{name: dns, ports: "53", outboundUdp: "127.0.0.1:53"}, {name: a, outbound: "[::]:2"}]`;
  const socket: ListeningSocket = {
    family: 4,
    address: '127.0.0.1',
    port: 53,
    inode: 1,
    uid: 0,
    cookie: 1n,
    v6only: false,
  };
  const said = (more: string, sockets: readonly ListeningSocket[]) =>
    datagramListeners(parseConfig(text(more), 'c.yaml'), () => sockets).map(
      ({ status, found }) => `${status} ${found}`,
    );

  test('are told of each instance that has any, and whether a port is named for it', () => {
    const named = 'interception: {outboundUdp: "53"}';
    expect(said(named, [socket])).toEqual([
      'ok dns: outboundUdp IPv4 at 127.0.0.1:53',
      'warn dns: outboundUdp: no IPv6 address',
    ]);
    expect(said(named, [])[0]).toBe('warn dns: outboundUdp IPv4: nobody listens at 127.0.0.1:53');
    expect(said('', [socket])[0]).toBe('warn dns: outboundUdp, and no port is named for it');
    expect(netns.run(() => udpListeners())).toEqual([]);
  });

  test('an instance for them alone lacks no listener of TCP', () => {
    const config = parseConfig(text(''), 'c.yaml');
    expect(listeners(config, []).filter(({ found }) => found.startsWith('dns'))).toEqual([]);
  });
});

describe('packet filter rules of others', () => {
  const uses = async (bits = BIT): Promise<string[]> =>
    markUses(await readRulesets(inside), bits).map(({ does, where }) => `${does} ${where}`);

  /** One chain for every rule, named after its place in the list. */
  function nftChains(rules: readonly string[]): Promise<string> {
    const chains = rules.map((rule, index) => `chain c${index} {\n${rule}\n}`).join('\n');
    const sets =
      'set marks { type mark; elements = { 0x41 } }\nmap m { type inet_service : mark; elements = { 80 : 0x40 } }';
    return inside('nft', ['-f', '-'], `table ip other {\n${sets}\n${chains}\n}\n`);
  }

  test('nftables: every way to touch our bit is seen', async () => {
    const rules = [
      ['sets', 'meta mark set meta mark or 0x40'],
      ['sets', 'meta mark set 0xca6c'],
      ['sets', 'meta mark set meta mark xor 0x40'],
      ['sets', 'meta mark set tcp dport map { 80 : 0x40 }'],
      ['sets', 'meta mark set tcp dport map @m'],
      ['overwrites', 'meta mark set 0x100'],
      ['overwrites', 'meta mark set meta mark and 0xffffffbf'],
      ['overwrites', 'meta mark set jhash ip saddr mod 2'],
      ['matches', 'meta mark and 0x40 == 0x40 accept'],
      ['matches', 'meta mark 0xca6c accept'],
      ['matches', 'meta mark { 0x40, 0x80 } accept'],
      ['matches', 'meta mark 0x30-0x50 accept'],
      ['matches', 'meta mark != 0x0 accept'],
      ['matches', 'meta mark @marks accept'],
      ['matches', 'meta mark vmap { 0x40 : accept }'],
    ] as const;
    await nftChains(rules.map(([, rule]) => rule));
    expect(await uses()).toEqual(rules.map(([does], index) => `${does} ip other c${index}`));
  });

  test('nftables: masks without our bit are nothing to us, nor are marks of connections that nobody copies', async () => {
    await nftChains([
      'meta mark set meta mark or 0x4000',
      'meta mark set meta mark and 0xffff00ff or 0x100',
      'meta mark and 0x4000 == 0x4000 accept',
      'meta mark 0x4000 accept',
      'ct mark set 0x40',
      'ct mark set meta mark',
      'ct mark 0x40 accept',
    ]);
    expect(await uses()).toEqual([]);
    await inside('nft', ['add', 'rule', 'ip', 'other', 'c0', 'meta', 'mark', 'set', 'ct', 'mark']);
    expect(await uses()).toEqual(['sets ip other c4']);
  });

  test('our own table is left out, and an overwritten mark is no loss where our packets do not bear it', async () => {
    const chain = (name: string, hook: string, priority: number): string =>
      `chain ${name} { type filter hook ${hook} priority ${priority}; meta mark set 0x100; }`;
    const ours = 'table inet nodesentry { chain p { meta mark and 0x40 == 0x40 accept; }; }';
    const theirs = [
      chain('first', 'prerouting', -320),
      chain('raw', 'prerouting', -300),
      chain('mangle', 'prerouting', -150),
      chain('last', 'prerouting', 1001),
      chain('post', 'postrouting', 0),
    ];
    await inside('nft', ['-f', '-'], `${ours}\ntable ip x { ${theirs.join('; ')}; }`);
    expect(await uses()).toEqual(['overwrites ip x first', 'overwrites ip x last']);
  });

  test('a rule at prerouting that asks for our bit is met where intercepted packets bear it, and nowhere else', async () => {
    const chain = (name: string, hook: string, priority: number): string =>
      `chain ${name} { type filter hook ${hook} priority ${priority}; meta mark and 0x40 == 0x40 accept; }`;
    const theirs = [
      chain('first', 'prerouting', -320),
      chain('mangle', 'prerouting', -150),
      chain('in', 'input', 0),
    ];
    await inside('nft', ['-f', '-'], `table ip x { ${theirs.join('; ')}; }`);
    expect(await uses()).toEqual(['matches ip x first', 'matches ip x in']);
  });

  test.each(['iptables', 'iptables-legacy', 'ip6tables', 'ip6tables-legacy'])(
    '%s: sees our bit, once',
    async (command) => {
      const add = (...words: string[]) => inside(command, ['-t', 'mangle', '-A', ...words]);
      await add('PREROUTING', '-j', 'MARK', '--or-mark', '0x4000');
      await add('PREROUTING', '-m', 'mark', '--mark', '0x4000/0x4000', '-j', 'ACCEPT');
      await add(
        'PREROUTING',
        '-m',
        'comment',
        '--comment',
        'not a --set-xmark 0x40 "really"',
        '-j',
        'ACCEPT',
      );
      await add('PREROUTING', '-m', 'connmark', '--mark', '0x40', '-j', 'ACCEPT');
      await add('OUTPUT', '-j', 'MARK', '--set-mark', '0x100');
      expect(await uses()).toEqual([]);
      await add('PREROUTING', '-j', 'MARK', '--set-mark', '0x100');
      await add('FORWARD', '-m', 'mark', '!', '--mark', '0x1/0xff', '-j', 'ACCEPT');
      await add('OUTPUT', '-j', 'MARK', '--set-xmark', '0x40/0x40');
      await add('POSTROUTING', '-j', 'CONNMARK', '--set-mark', '0x40');
      const where = command.replace('-legacy', '');
      const expected = [`matches ${where} mangle FORWARD`, `sets ${where} mangle OUTPUT`];
      expect((await uses()).sort()).toEqual(expected);
      await add('PREROUTING', '-j', 'CONNMARK', '--restore-mark');
      expect((await uses()).sort()).toEqual([...expected, `sets ${where} mangle POSTROUTING`]);
    },
  );

  test('a listing that fails is told, and what could be listed still counts', async () => {
    await nftChains(['meta mark set 0x40']);
    const failing: Command = (command, args, input) =>
      command.startsWith('iptables')
        ? Promise.reject(new CommandError('COMMAND_FAILED', `${command}: broken`))
        : inside(command, args, input);
    const checks = neighbourChecks(PLACE, failing).filter(({ name }) => name === 'marks of others');
    const [first, ...rest] = await runChecks(checks);
    expect(first).toMatchObject({ status: 'warn', found: 'rules in ip other c0 set bits of 0x40/0x40' });
    expect(rest.map(({ status, found }) => `${status} ${found}`)).toEqual([
      'fail could not be checked: iptables-nft-save: broken and 1 more',
    ]);
  });
});

describe('the host firewall', () => {
  const refused = async (): Promise<string[]> =>
    refusals(await readRulesets(inside), PLACE.mark.value).map(({ hook, where }) => `${hook} at ${where}`);

  async function input(policy: string, ...rules: string[]): Promise<string[]> {
    const body = rules.join('\n');
    await inside(
      'nft',
      ['-f', '-'],
      `table inet f
delete table inet f
table inet f {
chain sub {
 ct state established accept
 drop
}
chain friendly {
 ct state untracked accept
}
chain input {
 type filter hook input priority 0; policy ${policy};
${body}
}
}
`,
    );
    return refused();
  }

  const REFUSED = ['input at inet f input'];
  const ESTABLISHED = 'ct state established,related accept';

  test.each([
    ['drop', []],
    ['drop', [ESTABLISHED, 'iifname lo accept', 'tcp dport 22 accept']],
    ['accept', [ESTABLISHED, 'reject with icmpx admin-prohibited']],
    ['accept', ['ct state != { established, related } drop']],
    ['accept', ['jump sub']],
    ['accept', ['iifname != lo goto sub']],
    ['drop', ['ct state vmap { established : accept, invalid : drop }']],
  ])('policy %s with %j refuses untracked packets', async (policy, rules) => {
    expect(await input(policy, ...rules)).toEqual(REFUSED);
  });

  test.each([
    ['accept', [ESTABLISHED, 'ct state invalid drop', 'tcp dport 23 drop']],
    ['drop', ['ct state established,untracked accept']],
    ['drop', ['ct state { established, untracked } accept']],
    ['drop', ['ct state vmap { established : accept, untracked : accept }']],
    ['drop', ['meta mark and 0x40 == 0x40 accept']],
    ['drop', ['meta mark 0x40 counter accept']],
    ['drop', ['meta l4proto tcp accept']],
    ['drop', ['jump friendly', 'drop']],
    ['accept', ['limit rate 1/second drop', 'udp dport 53 drop']],
  ])('policy %s with %j does not', async (policy, rules) => {
    expect(await input(policy, ...rules)).toEqual([]);
  });

  test.each(['iptables', 'iptables-legacy'])('%s is understood', async (command) => {
    const rule = (...words: string[]) => inside(command, words);
    await rule('-P', 'OUTPUT', 'DROP');
    await rule('-A', 'INPUT', '-m', 'conntrack', '--ctstate', 'RELATED,ESTABLISHED', '-j', 'ACCEPT');
    await rule('-A', 'INPUT', '-i', 'lo', '-j', 'ACCEPT');
    expect(await refused()).toEqual(['output at iptables filter OUTPUT']);
    await rule('-N', 'STRICT');
    await rule('-A', 'STRICT', '-j', 'LOG');
    await rule('-A', 'STRICT', '-p', 'tcp', '-j', 'REJECT');
    await rule('-A', 'INPUT', '-j', 'STRICT');
    expect(await refused()).toEqual(['input at iptables filter INPUT', 'output at iptables filter OUTPUT']);
    await rule('-I', 'STRICT', '-m', 'mark', '--mark', '0x40/0x40', '-j', 'ACCEPT');
    await rule('-A', 'OUTPUT', '-m', 'conntrack', '--ctstate', 'UNTRACKED', '-j', 'ACCEPT');
    expect(await refused()).toEqual([]);
  });

  test('the advice names the chain', async () => {
    await input('drop');
    const [found] = await runChecks(
      neighbourChecks(PLACE, inside).filter(({ name }) => name === 'host firewall'),
    );
    expect(found).toMatchObject({ status: 'warn', found: 'input drop by default' });
    expect(found?.advice).toContain('in inet f input');
  });
});

describe('programs of others at our hook', () => {
  let links: HookLink[];
  let kernel: HookKernel;
  beforeEach(() => {
    links = ['v0', 'v1'].map((name) => ({ index: netns.addVeth(name), name, kind: 'veth', master: 0 }));
    kernel = {
      tcxSupported: () => true,
      queryTcx: (ifindex, direction) => netns.run(() => queryTcx(ifindex, direction)),
      programInfo,
    };
  });
  const findings = async (): Promise<string[]> =>
    (await hookFindings(links, inside, kernel)).map(({ status, found }) => `${status} ${found}`);

  /** A program that is not ours, and ours. */
  function programs() {
    const probe = cleanup.owned(loadProbe());
    const intercept = cleanup.owned(BpfObject.open(join(process.cwd(), 'build/bpf/intercept.bpf.o')));
    intercept.load();
    return {
      foreign: cleanup.owned(probe.program(PROBE)),
      ours: cleanup.owned(intercept.program('pod_egress')),
    };
  }
  const PROBE = 'stamp';

  test('tells which tcx programs come before ours and which after', async () => {
    expect(await findings()).toEqual(['ok none at 2 veths and bridges']);
    const { foreign, ours } = programs();
    const attach = (program: typeof foreign, link: HookLink | undefined) =>
      cleanup.owned(netns.run(() => attachTcx(program, link?.index ?? 0, 'ingress')));
    attach(foreign, links[0]);
    expect(await findings()).toEqual([`warn ${PROBE} at v0 runs before ours`]);
    attach(ours, links[0]);
    attach(ours, links[1]);
    attach(foreign, links[1]);
    expect(await findings()).toEqual([
      `warn ${PROBE} at v0 runs before ours`,
      `ok ${PROBE} at v1 runs after ours: intercepted packets do not reach it`,
    ]);
  });

  test('clsact filters come after tcx, and by priority where there is no tcx', async () => {
    const { foreign, ours } = programs();
    netns.run(() => attachClsact(foreign, links[0]?.index ?? 0, 'ingress', { priority: 7, handle: 1 }));
    netns.run(() => attachClsact(ours, links[0]?.index ?? 0, 'ingress', CLSACT));
    netns.exec(
      'tc',
      ...'filter add dev v0 ingress pref 30000 protocol ip u32 match u32 0 0 classid 1:1'.split(' '),
    );
    const after = 'runs after ours: intercepted packets do not reach it';
    kernel = {
      ...kernel,
      tcxSupported: () => false,
      queryTcx: () => {
        throw new Error('no tcx here');
      },
    };
    expect(await findings()).toEqual([
      `warn tc filter ${PROBE} (priority 7) at v0 runs before ours`,
      `ok tc filter u32 (priority 30000) at v0 ${after}`,
    ]);
    kernel = { ...kernel, tcxSupported: () => true, queryTcx: () => [] };
    expect((await findings())[0]).toBe(`ok tc filter ${PROBE} (priority 7) at v0 ${after}`);
  });

  test('of ours each one is known, whichever interface it is at', async () => {
    for (const name of ['pod_egress', 'bridge_steer', 'inbound_steer']) {
      const ours = { ...kernel, queryTcx: () => [{ programId: 1 }], programInfo: () => ({ name }) };
      expect((await hookFindings(links, inside, ours)).map(({ found }) => found)).toEqual([
        'none at 2 veths and bridges',
      ]);
    }
  });

  test('an interface that goes while it is looked at, and a node without tc, are no failure', async () => {
    netns.ip('link del v1');
    const gone: Command = (command, args) =>
      args.includes('qdisc') ? Promise.resolve('[{"kind":"clsact","dev":"v1"}]') : inside(command, args);
    const none = ['none at 2 veths and bridges'];
    expect((await hookFindings(links, gone, kernel)).map(({ found }) => found)).toEqual(none);
    const withoutTc: Command = () =>
      Promise.reject(new CommandError('COMMAND_MISSING', 'tc is not installed'));
    expect((await hookFindings(links, withoutTc, kernel)).map(({ found }) => found)).toEqual(none);
  });
});
