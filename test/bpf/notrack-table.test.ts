import { afterAll, afterEach, beforeAll, describe, expect, it } from 'vitest';
import type { NftSettings } from '../../src/kernel/notrack-table.js';
import { Netns } from '../unit/native-lab.js';
import { NftInside } from './in-netns.js';

const SETTINGS: NftSettings = {
  mark: { value: 0x40, mask: 0x40 },
  pods4: ['10.66.0.3', '10.66.0.20'],
  pods6: ['fd00:66::3'],
};

const CREATED = ['table inet nodesentry'];
const REPAIRED = ['contents of table inet nodesentry'];

const OTHERS = `
table ip kube-proxy {
  counter hits { packets 5 bytes 300 }
  chain services {
    type nat hook prerouting priority dstnat; policy accept;
    ip daddr 10.96.0.10 tcp dport 53 dnat to 10.66.0.3:53 comment "dns"
  }
}
table inet nodesentry2 {
  set pods4 { type ipv4_addr; elements = { 192.0.2.1 } }
}
table ip6 nodesentry {
  chain prerouting { type filter hook prerouting priority -300; policy accept; }
}
`;

let netns: Netns;
let inside: NftInside;

beforeAll(() => {
  netns = new Netns();
  inside = new NftInside(netns.path);
});

afterEach(() => void nft('flush', 'ruleset'));

afterAll(async () => {
  await inside?.close();
  netns?.close();
});

function nft(...args: string[]): string {
  return netns.exec('nft', ...args);
}

/** Our table without the handles, which count up with each change. */
const table = () => nft('list', 'table', 'inet', 'nodesentry');
const handles = () => nft('-a', 'list', 'table', 'inet', 'nodesentry');

/** The rules of a chain, in their order, without their comments. */
function rulesOf(chain: string): string[] {
  const [, body = ''] = new RegExp(`chain ${chain} {\\n([^}]*(?:{[^}]*}[^}]*)*)\\n\\t}`).exec(table()) ?? [];
  return body.split('\n').map((line) => line.trim().replace(/ comment "[^"]*"/, ''));
}

const MARKED = 'meta mark & 0x00000040 == 0x00000040';
const MARK = 'meta mark set meta mark | 0x00000040';
const UNMARK = 'meta mark set meta mark & 0xffffffbf';
const TAKEN = 'meta l4proto tcp socket transparent 1';
const LEFT = 'meta priority 4e53:2';

describe('the table', () => {
  it('has rules by which intercepted packets and their replies are not tracked, and one look for all else', async () => {
    expect(await inside.ensure(SETTINGS)).toEqual(CREATED);
    const text = table().replaceAll(/\s+/g, ' ');
    expect(text).toContain('elements = { 10.66.0.3, 10.66.0.20 }');
    expect(text).toContain('elements = { fd00:66::3 }');
    expect(rulesOf('prerouting')).toEqual([
      'type filter hook prerouting priority raw - 10; policy accept;',
      `${LEFT} notrack ${UNMARK} accept`,
      'ip saddr @pods4 meta l4proto tcp jump from_pod',
      'ip6 saddr @pods6 meta l4proto tcp jump from_pod',
      `${MARKED} meta l4proto udp ip saddr @pods4 socket transparent 1 notrack ${UNMARK} accept`,
      `${MARKED} meta l4proto udp ip6 saddr @pods6 socket transparent 1 notrack ${UNMARK} accept`,
      `${MARKED} iifname "nodesentry0" notrack ${UNMARK}`,
    ]);
    expect(rulesOf('from_pod')).toEqual([
      `socket transparent 1 socket wildcard 0 notrack ${UNMARK} accept`,
      `${MARKED} socket transparent 1 notrack ${UNMARK} accept`,
    ]);
    expect(rulesOf('output')).toEqual([
      'type filter hook output priority raw; policy accept;',
      `${MARKED} jump local_taken`,
      'meta l4proto tcp ip daddr @pods4 socket transparent 1 notrack',
      'meta l4proto tcp ip6 daddr @pods6 socket transparent 1 notrack',
      'meta l4proto udp ip daddr @pods4 ip saddr != @pods4 socket transparent 1 notrack',
      'meta l4proto udp ip6 daddr @pods6 ip6 saddr != @pods6 socket transparent 1 notrack',
    ]);
  });

  it('has a rule that resets what our program left to connection tracking and that does not know', async () => {
    await inside.ensure(SETTINGS);
    expect(rulesOf('after_conntrack')).toEqual([
      'type filter hook prerouting priority -190; policy accept;',
      'meta priority 4e53:1 jump answer',
    ]);
    expect(rulesOf('answer')).toEqual([
      'meta l4proto tcp ct state invalid,new reject with tcp reset',
      'meta priority set none',
    ]);
  });

  it('has rules right before routing that take a foreign bit off and give the mark back to what is ours', async () => {
    await inside.ensure(SETTINGS);
    expect(rulesOf('before_routing')).toEqual([
      'type filter hook prerouting priority 1000; policy accept;',
      `${LEFT} ${MARK} accept`,
      `${MARKED} ${UNMARK}`,
      `ct state untracked ip saddr @pods4 ${TAKEN} ${MARK} accept`,
      `ct state untracked ip6 saddr @pods6 ${TAKEN} ${MARK} accept`,
      `ct state untracked meta l4proto udp ip saddr @pods4 socket transparent 1 ${MARK} accept`,
      `ct state untracked meta l4proto udp ip6 saddr @pods6 socket transparent 1 ${MARK} accept`,
      `icmp type destination-unreachable ip saddr @pods4 socket transparent 1 ${MARK} accept`,
      `icmpv6 type destination-unreachable ip6 saddr @pods6 socket transparent 1 ${MARK} accept`,
      `icmpv6 type packet-too-big ip6 saddr @pods6 socket transparent 1 ${MARK} accept`,
      `ct state untracked iifname "nodesentry0" ${TAKEN} ${MARK}`,
      `ct state untracked iifname "nodesentry0" meta l4proto udp socket transparent 1 ${MARK}`,
      'ip daddr @pods4 jump to_pod',
      'ip6 daddr @pods6 jump to_pod',
    ]);
    expect(rulesOf('to_pod')).toEqual([
      'meta l4proto tcp socket wildcard 1 return',
      'tcp flags syn / fin,syn,rst,ack socket wildcard 0 return',
      `${TAKEN} ${MARK}`,
      `icmp type destination-unreachable socket transparent 1 ${MARK}`,
      `icmpv6 type destination-unreachable socket transparent 1 ${MARK}`,
      `icmpv6 type packet-too-big socket transparent 1 ${MARK}`,
    ]);
  });

  it('has rules that let what was left to look-up reach a transparent socket or nothing', async () => {
    await inside.ensure(SETTINGS);
    expect(rulesOf('input')).toEqual([
      'type filter hook input priority 97; policy accept;',
      `${LEFT} jump local_left`,
      `${MARKED} jump local_marked`,
    ]);
    expect(rulesOf('local_left')).toEqual([
      `${TAKEN} meta priority set none return`,
      'meta l4proto udp socket transparent 1 meta priority set none return',
      `${LEFT} drop`,
    ]);
  });

  it('has rules that keep IPVS from what is intercepted', async () => {
    await inside.ensure({ ...SETTINGS, mark: { value: 0x40, mask: 0xf0 } });
    const marked = 'meta mark & 0x000000f0 == 0x00000040';
    expect(rulesOf('input').at(-1)).toBe(`${marked} jump local_marked`);
    expect(rulesOf('local_marked')).toEqual([
      'iifname "nodesentry0" meta mark set meta mark & 0xffffff0f accept',
      'ip saddr @pods4 meta l4proto tcp ct state untracked meta mark set 0x00000040 accept',
      'ip6 saddr @pods6 meta l4proto tcp ct state untracked meta mark set 0x00000040 accept',
      'ip saddr @pods4 meta l4proto udp ct state untracked meta mark set 0x00000040 accept',
      'ip6 saddr @pods6 meta l4proto udp ct state untracked meta mark set 0x00000040 accept',
      // What is for a pod, IPVS must not know by its mark.
      'ip daddr @pods4 meta l4proto tcp meta mark set meta mark & 0xffffff0f',
      'ip6 daddr @pods6 meta l4proto tcp meta mark set meta mark & 0xffffff0f',
    ]);
    expect(rulesOf('output')[1]).toBe(`${marked} jump local_taken`);
    expect(rulesOf('local_taken')).toEqual([
      'ip saddr @pods4 meta l4proto tcp drop',
      'ip6 saddr @pods6 meta l4proto tcp drop',
      'ip saddr @pods4 meta l4proto udp drop',
      'ip6 saddr @pods6 meta l4proto udp drop',
    ]);
  });

  it('is not written again while it is as wanted', async () => {
    await inside.ensure(SETTINGS);
    const before = handles();
    expect(await inside.ensure(SETTINGS)).toEqual([]);
    expect(await inside.ensure({ ...SETTINGS, pods4: [...SETTINGS.pods4].reverse() })).toEqual([]);
    expect(handles()).toBe(before);
  });

  it('stands without any pod, and with 2,000', async () => {
    const none = { ...SETTINGS, pods4: [], pods6: [] };
    expect(await inside.ensure(none)).toEqual(CREATED);
    expect(await inside.ensure(none)).toEqual([]);
    const many = (prefix: string, separator: string) =>
      Array.from({ length: 1_000 }, (_, i) => `${prefix}${1 + (i >> 7)}${separator}${1 + (i & 0x7f)}`);
    const pods4 = many('10.66.', '.');
    const pods6 = many('fd00::', ':');
    expect(await inside.ensure({ ...SETTINGS, pods4, pods6 })).toEqual(REPAIRED);
    expect(await inside.ensure({ ...SETTINGS, pods4, pods6 })).toEqual([]);
  });

  it.each([
    ['a pod came', { ...SETTINGS, pods4: [...SETTINGS.pods4, '10.66.0.9'] }, '10.66.0.9'],
    ['a pod went', { ...SETTINGS, pods6: [] }, 'set pods6'],
    ['the mark changed', { ...SETTINGS, mark: { value: 0x400, mask: 0xf00 } }, '0x00000f00'],
  ])('follows when %s', async (_what, settings, text) => {
    await inside.ensure(SETTINGS);
    expect(await inside.ensure(settings)).toEqual(REPAIRED);
    expect(table()).toContain(text);
    expect(await inside.ensure(settings)).toEqual([]);
  });
});

describe('what somebody did to the table is undone', () => {
  const find = (pattern: RegExp): RegExpExecArray => {
    const found = pattern.exec(handles());
    if (found === null) {
      throw new Error(`nothing to do damage to: ${pattern} is not in\n${handles()}`);
    }
    return found;
  };
  const handleOf = (comment: string) =>
    find(new RegExp(`comment "${comment}[^"]*" # handle (\\d+)`))[1] ?? '';
  const inet = ['inet', 'nodesentry'];

  it.each([
    ['a rule deleted', () => nft('delete', 'rule', ...inet, 'output', 'handle', handleOf('output replies'))],
    ['a rule added', () => nft('add', 'rule', ...inet, 'prerouting', 'tcp', 'dport', '80', 'drop')],
    [
      'a rule added with a comment',
      () => nft('add', 'rule', ...inet, 'output', 'drop', 'comment', '"output replies IPv4"'),
    ],
    [
      'a rule replaced under the same comment',
      () => {
        const [, comment = ''] = find(/comment ("output replies IPv4[^"]*")/);
        nft(
          'replace',
          'rule',
          ...inet,
          'output',
          'handle',
          handleOf('output replies'),
          'drop',
          'comment',
          comment,
        );
      },
    ],
    [
      'two rules in the other order',
      () => {
        const [, rule = '', handle = ''] = find(/(ip saddr @pods4 .* jump from_pod .*) # handle (\d+)/);
        nft('delete', 'rule', ...inet, 'prerouting', 'handle', handle);
        nft(`add rule inet nodesentry prerouting ${rule}`);
      },
    ],
    ['the rules flushed', () => nft('flush', 'table', ...inet)],
    ['a chain added', () => nft('add', 'chain', ...inet, 'another')],
    ['a policy changed', () => nft('add', 'chain', ...inet, 'output', '{ policy drop; }')],
    ['a chain deleted', () => nft('delete', 'chain', ...inet, 'prerouting')],
    ['an address added', () => nft('add', 'element', ...inet, 'pods4', '{ 192.0.2.7 }')],
    ['an address deleted', () => nft('delete', 'element', ...inet, 'pods6', '{ fd00:66::3 }')],
    ['a set flushed', () => nft('flush', 'set', ...inet, 'pods4')],
  ])('%s', async (_what, tamper) => {
    await inside.ensure(SETTINGS);
    const before = table();
    tamper();
    expect(table()).not.toBe(before);
    expect(await inside.ensure(SETTINGS)).toEqual(REPAIRED);
    expect(table()).toBe(before);
  });

  it('the table deleted', async () => {
    await inside.ensure(SETTINGS);
    const before = table();
    nft('delete', 'table', 'inet', 'nodesentry');
    expect(await inside.ensure(SETTINGS)).toEqual(CREATED);
    expect(table()).toBe(before);
  });
});

it.each([
  ['one bit', { value: 0x40, mask: 0x40 }],
  ['one of four', { value: 0x400, mask: 0xf00 }],
  ['all of four', { value: 0xf00, mask: 0xf00 }],
  ['a high bit', { value: 0x20000000, mask: 0x20000000 }],
])('this nft lists the rules as they are compared, with a mark of %s', async (_what, mark) => {
  await inside.ensure({ ...SETTINGS, mark });
  const before = handles();
  expect(await inside.ensure({ ...SETTINGS, mark })).toEqual([]);
  expect(handles()).toBe(before);
});

it('rules that nft lists otherwise than we do are written once, and then known by that listing', async () => {
  // A mask that begins with the highest bit is listed as a prefix.
  const settings = { ...SETTINGS, mark: { value: 0x80000000, mask: 0xc0000000 } };
  await inside.ensure(settings);
  const { repaired, rules } = await inside.look(settings);
  expect(repaired).toEqual(REPAIRED);
  const before = handles();
  expect(await inside.look(settings, rules)).toEqual({ repaired: [], rules });
  expect(handles()).toBe(before);
});

describe('the tables of others', () => {
  it('stay as they are, byte for byte, whatever happens to ours', async () => {
    nft(OTHERS);
    const before = nft('-a', 'list', 'ruleset');
    await inside.ensure(SETTINGS);
    await inside.ensure({ ...SETTINGS, pods4: [] });
    expect(nft('-a', 'list', 'ruleset').startsWith(before.trimEnd())).toBe(true);
    expect(await inside.remove()).toEqual(CREATED);
    expect(nft('-a', 'list', 'ruleset')).toBe(before);
  });
});

describe('removal', () => {
  it('leaves no table, and finds nothing the second time', async () => {
    await inside.ensure(SETTINGS);
    expect(await inside.remove()).toEqual(CREATED);
    expect(nft('list', 'ruleset')).toBe('');
    expect(await inside.remove()).toEqual([]);
  });
});

describe('failures', () => {
  it('say what nft said', async () => {
    await expect(inside.ensure({ ...SETTINGS, pods4: ['10.66.0.300'] })).rejects.toMatchObject({
      code: 'NFT_FAILED',
      message: expect.stringContaining('10.66.0.300'),
    });
    expect(nft('list', 'ruleset')).toBe('');
  });

  it('leave the table as it was', async () => {
    await inside.ensure(SETTINGS);
    const before = handles();
    await expect(inside.ensure({ ...SETTINGS, pods6: ['10.66.0.3'] })).rejects.toMatchObject({
      code: 'NFT_FAILED',
    });
    expect(handles()).toBe(before);
  });

  it('name the package where the command is missing', async () => {
    const without = new NftInside(netns.path, { PATH: '/nonexistent' });
    try {
      await expect(without.ensure(SETTINGS)).rejects.toMatchObject({
        code: 'NFT_FAILED',
        message:
          'nft -j list table inet nodesentry: the nft command is not installed (Debian package nftables)',
      });
    } finally {
      await without.close();
    }
  });
});
