import { afterEach, beforeEach, describe, expect, it } from 'vitest';
import { familiesOff } from '../../src/kernel/families.js';
import { NetlinkError, RouteSocket } from '../../src/kernel/netlink.js';
import { ROUTE_PROTOCOL } from '../../src/kernel/netlink-messages.js';
import { ensurePolicyRoutes, marksAreDelivered, removePolicyRoutes } from '../../src/kernel/policy-routes.js';
import { Cleanup, Netns } from '../unit/native-lab.js';

const SETTINGS = { mark: { value: 0x40, mask: 0x40 }, table: 7340, rulePriority: 90 };
const REPAIRED = {
  route4: 'IPv4 route in table 7340',
  rule4: 'IPv4 rule at priority 90',
  route6: 'IPv6 route in table 7340',
  rule6: 'IPv6 rule at priority 90',
} as const;

const cleanup = new Cleanup();
let netns: Netns;
let socket: RouteSocket;

beforeEach(() => {
  netns = cleanup.owned(new Netns());
  socket = cleanup.owned(netns.run(() => new RouteSocket()));
});

afterEach(() => cleanup.run());

function lines(...args: string[]): string[] {
  const text = netns.exec('ip', ...args);
  return text
    .split('\n')
    .map((line) => line.trim().replaceAll(/\s+/g, ' '))
    .filter((line) => line !== '')
    .sort();
}

/** Everything that routes a packet: the rules, and the routes of all tables. */
function kernel() {
  return {
    rules4: lines('rule'),
    rules6: lines('-6', 'rule'),
    routes4: lines('route', 'show', 'table', 'all'),
    routes6: lines('-6', 'route', 'show', 'table', 'all'),
  };
}

function table(family: 4 | 6): string[] {
  const all = lines(family === 4 ? '-4' : '-6', 'route', 'show', 'table', 'all');
  // Asked for a table that is empty, ip fails as it does where anything else is wrong.
  return all.filter((line) => line.includes(' table 7340 ')).map((line) => line.replace('table 7340 ', ''));
}

const ensure = () => ensurePolicyRoutes(socket, SETTINGS);

describe('rules and routes', () => {
  it('are one of each per family, and nothing else', async () => {
    const before = kernel();
    expect((await ensure()).repaired).toEqual([
      REPAIRED.route4,
      REPAIRED.rule4,
      REPAIRED.route6,
      REPAIRED.rule6,
    ]);
    const rule = '90: from all fwmark 0x40/0x40 lookup 7340 proto 73';
    expect(lines('rule')).toEqual([...before.rules4, rule].sort());
    expect(lines('-6', 'rule')).toEqual([...before.rules6, rule].sort());
    expect(table(4)).toEqual(['local default dev lo proto 73 scope host']);
    expect(table(6)).toEqual(['local default dev lo proto 73 metric 1024 pref medium']);
  });

  it('are left alone when they are all there', async () => {
    await ensure();
    const before = kernel();
    expect((await ensure()).repaired).toEqual([]);
    expect(kernel()).toEqual(before);
  });

  it.each([
    ['IPv4 rule', ['rule', 'del', 'priority', '90'], REPAIRED.rule4],
    ['IPv6 rule', ['-6', 'rule', 'del', 'priority', '90'], REPAIRED.rule6],
    ['IPv4 route', ['route', 'flush', 'table', '7340'], REPAIRED.route4],
    ['IPv6 route', ['-6', 'route', 'flush', 'table', '7340'], REPAIRED.route6],
  ])('come back when somebody takes away the %s', async (_what, command, repaired) => {
    await ensure();
    const before = kernel();
    netns.exec('ip', ...command);
    expect(kernel()).not.toEqual(before);
    expect((await ensure()).repaired).toEqual([repaired]);
    expect(kernel()).toEqual(before);
  });

  it('give way to those of a new mark, and of a new priority', async () => {
    await ensure();
    const wanted = { ...SETTINGS, mark: { value: 0x400, mask: 0xf00 }, rulePriority: 91 };
    expect((await ensurePolicyRoutes(socket, wanted)).repaired).toEqual([
      'IPv4 rule at priority 91',
      'stale IPv4 rule at priority 90 removed',
      'IPv6 rule at priority 91',
      'stale IPv6 rule at priority 90 removed',
    ]);
    const rule = '91: from all fwmark 0x400/0xf00 lookup 7340 proto 73';
    expect(lines('rule').filter((line) => line.includes('7340'))).toEqual([rule]);
    expect(lines('-6', 'rule').filter((line) => line.includes('7340'))).toEqual([rule]);
  });

  it('with a narrower match than ours count as missing', async () => {
    const command = 'rule add priority 90 fwmark 0x40/0x40 iif lo lookup 7340 protocol 73';
    netns.ip(command);
    expect((await ensure()).repaired).toContain(REPAIRED.rule4);
    expect(lines('rule').filter((line) => line.includes('7340'))).toEqual([
      '90: from all fwmark 0x40/0x40 lookup 7340 proto 73',
    ]);
  });
});

describe('a namespace whose IPv6 is off', () => {
  it.each(['all', 'lo'])(
    'for %s: asked for both families it fails, asked for IPv4 alone that half is whole',
    async (name) => {
      const before = kernel();
      netns.exec('sysctl', '-qw', `net.ipv6.conf.${name}.disable_ipv6=1`);
      expect(netns.run(() => familiesOff()).map(({ family }) => family)).toEqual([6]);
      await expect(ensure()).rejects.toMatchObject({ code: 'EACCES' });
      await removePolicyRoutes(socket);
      const only4 = { families: [4] } as const;
      expect((await ensurePolicyRoutes(socket, SETTINGS, only4)).repaired).toEqual([
        REPAIRED.route4,
        REPAIRED.rule4,
      ]);
      expect((await ensurePolicyRoutes(socket, SETTINGS, only4)).repaired).toEqual([]);
      expect(await marksAreDelivered(socket, SETTINGS, [4])).toBe(true);
      expect(await marksAreDelivered(socket, SETTINGS)).toBe(false);
      expect(kernel().rules6).toEqual(before.rules6);
    },
  );

  it('loses the route when it goes off, and has it again when it is on again', async () => {
    await ensure();
    netns.exec('sysctl', '-qw', 'net.ipv6.conf.all.disable_ipv6=1');
    expect(table(6)).toEqual([]);
    netns.exec('sysctl', '-qw', 'net.ipv6.conf.all.disable_ipv6=0');
    expect(netns.run(() => familiesOff())).toEqual([]);
    expect((await ensure()).repaired).toEqual([REPAIRED.route6]);
    expect(await marksAreDelivered(socket, SETTINGS)).toBe(true);
  });
});

describe("somebody else's", () => {
  it.each([
    ['IPv4', ['rule', 'add', 'priority', '50', 'from', '10.0.0.0/8', 'lookup', '7340']],
    ['IPv6', ['-6', 'rule', 'add', 'priority', '50', 'from', 'fd00::/8', 'lookup', '7340']],
  ])('%s rule for our table is refused, and nothing is changed', async (family, command) => {
    netns.exec('ip', ...command);
    const before = kernel();
    await expect(ensure()).rejects.toMatchObject({
      code: 'RULE_CONFLICT',
      message: `an ${family} rule of somebody else at priority 50 uses table 7340: set interception.table to a free one`,
    });
    expect(kernel()).toEqual(before);
  });

  it.each([
    ['IPv4', ['route', 'add', 'blackhole', '10.9.0.0/16', 'table', '7340', 'proto', 'static']],
    ['IPv6', ['-6', 'route', 'add', 'blackhole', 'fd09::/16', 'table', '7340', 'proto', 'static']],
  ])('%s route in our table is refused, and nothing is changed', async (family, command) => {
    netns.exec('ip', ...command);
    const before = kernel();
    await expect(ensure()).rejects.toMatchObject({
      code: 'ROUTE_CONFLICT',
      message: `routing table 7340 already holds an ${family} route of somebody else (protocol 4): set interception.table to a free one`,
    });
    expect(kernel()).toEqual(before);
  });

  it('rules at our priority and with our mark, but for their table, stay', async () => {
    netns.ip('rule add priority 90 fwmark 0x40/0x40 lookup 100');
    const before = kernel();
    await ensure();
    await removePolicyRoutes(socket);
    expect(kernel()).toEqual(before);
  });
});

describe('removal', () => {
  it('leaves everything as it was', async () => {
    netns.ip('rule add priority 95 fwmark 0x80/0x80 lookup 100');
    netns.ip('route add blackhole 10.9.0.0/16 table 100');
    const before = kernel();
    await ensure();
    expect(await removePolicyRoutes(socket)).toHaveLength(4);
    expect(kernel()).toEqual(before);
    expect(await removePolicyRoutes(socket)).toEqual([]);
  });

  it('finds what is ours in a table of another configuration', async () => {
    const before = kernel();
    await ensurePolicyRoutes(socket, { ...SETTINGS, table: 200, rulePriority: 12 });
    await removePolicyRoutes(socket);
    expect(kernel()).toEqual(before);
  });

  it('finds a route whose rule has gone', async () => {
    const before = kernel();
    await ensure();
    netns.exec('ip', 'rule', 'del', 'priority', '90');
    expect(await removePolicyRoutes(socket)).toContain(REPAIRED.route4);
    expect(kernel()).toEqual(before);
  });
});

describe('a route socket', () => {
  const rule = {
    family: 4,
    priority: 90,
    table: 7340,
    mark: 0x40,
    mask: 0x40,
    protocol: ROUTE_PROTOCOL,
  } as const;

  it('answers 200 requests made at once', async () => {
    const answers = await Promise.all(
      Array.from({ length: 200 }, (_, i) => (i % 2 === 0 ? socket.links() : socket.rules(4))),
    );
    expect(answers.every((answer) => answer.length > 0)).toBe(true);
    expect(answers[0]).toMatchObject([{ index: 1, name: 'lo', loopback: true }]);
  });

  it('goes on after a request that the kernel refused, naming what and why', async () => {
    await socket.addRule(rule);
    const [refused, listed] = await Promise.allSettled([socket.addRule(rule), socket.rules(4)]);
    expect(refused).toMatchObject({
      reason: { code: 'EEXIST', message: 'adding the IPv4 rule at priority 90: EEXIST' },
    });
    expect(refused.status === 'rejected' && refused.reason).toBeInstanceOf(NetlinkError);
    expect(listed).toMatchObject({ status: 'fulfilled' });
    await socket.deleteRule(rule);
    await expect(socket.deleteRule(rule)).rejects.toMatchObject({ code: 'ENOENT' });
  });

  it('that is closed says so, also to requests that were waiting', async () => {
    const waiting = Array.from({ length: 3 }, () => socket.links());
    const outcomes = Promise.allSettled(waiting);
    socket.close();
    socket.close();
    for (const outcome of await outcomes) {
      expect(outcome).toMatchObject({ reason: { name: 'NetlinkError', code: 'CLOSED' } });
    }
    await expect(socket.rules(6)).rejects.toMatchObject({
      code: 'CLOSED',
      message: 'listing IPv6 rules: CLOSED',
    });
  });

  it('stays in the namespace in which it was made', async () => {
    netns.addVeth('pod');
    expect((await socket.links()).map((link) => link.name).sort()).toEqual(['lo', 'pod', 'pod-peer']);
  });

  it('knows another namespace by the id that the kernel gave it', async () => {
    const pod = cleanup.owned(new Netns());
    expect(await socket.namespaceId(pod.fd)).toBeUndefined();
    netns.ip(`link add veth0 type veth peer name eth0 netns ${pod.name}`);
    const id = await socket.namespaceId(pod.fd);
    const host = (await socket.links()).find((link) => link.name === 'veth0');
    expect(id).toBeTypeOf('number');
    expect(host).toMatchObject({ kind: 'veth', peerNamespaceId: id, ethernet: true });
  });
});
