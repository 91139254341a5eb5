import fc from 'fast-check';
import { describe, expect, it } from 'vitest';
import {
  compile,
  datagramsOf,
  type FlowSelection,
  judge,
  mayIntercept,
  selectionOf,
} from '../../src/datapath/selection.js';
import { parsePrefix } from '../../src/net/ip.js';
import { ALL_PORTS, formatPorts, parsePorts } from '../../src/net/ports.js';
import { type DirectionRules, readSelection, SELECT_ALL } from '../../src/pods/selection.js';
import { randomFlow, randomSelection, takenBy } from './selection-model.js';

const NO_SHARES = { outbound: [], inbound: [] };
const BOTH = { outbound: true, inbound: true };

function said(annotations: Record<string, string>) {
  return readSelection(
    (key) => annotations[key],
    (key, expected, value) => {
      throw new Error(`${key}: ${expected}: ${value}`);
    },
  );
}

describe('what a pod says', () => {
  it('is nothing, and then the same object', () => {
    expect(said({})).toBe(SELECT_ALL);
    expect(selectionOf(SELECT_ALL, said({ outbound: 'all' }), NO_SHARES, BOTH)).toBeUndefined();
  });

  const EXCLUDED = [
    { ip: '10.1.2.3', length: 8 },
    { ip: 'fd00::', length: 8 },
  ];

  it('are ports and CIDRs of each direction', () => {
    expect(said({ outbound: '80, 8000-8080', 'exclude-inbound-cidrs': '10.1.2.3/8,fd00::/8' })).toEqual({
      outbound: {
        ports: [
          { from: 80, to: 80 },
          { from: 8_000, to: 8_080 },
        ],
        include: undefined,
        exclude: [],
      },
      inbound: {
        ports: ALL_PORTS,
        include: undefined,
        exclude: EXCLUDED,
      },
      udp: {
        outbound: { ports: ALL_PORTS, include: undefined, exclude: [] },
        inbound: { ports: ALL_PORTS, include: undefined, exclude: EXCLUDED },
      },
    });
    expect(said({ inbound: 'none' }).inbound.ports).toEqual([]);
    const { outbound, udp } = said({ 'outbound-udp': '53', 'include-outbound-cidrs': '10.0.0.0/8' });
    expect(outbound.ports).toBe(ALL_PORTS);
    expect(udp.outbound).toEqual({
      ports: [{ from: 53, to: 53 }],
      include: [{ ip: '10.0.0.0', length: 8 }],
      exclude: [],
    });
  });
});

it.each(['all', 'none', '80', '80,443', '1-65535', '80-81,9000'])(
  'the ports %s are said as they were read',
  (text) => {
    expect(formatPorts(parsePorts(text) ?? [])).toBe(text);
  },
);

it('a mapped prefix is that of its IPv4 addresses, and one that has more than those is none', () => {
  expect(parsePrefix('::ffff:10.0.0.0/104')).toEqual({ ip: '10.0.0.0', length: 8 });
  expect(parsePrefix('::ffff:0:0/96')).toEqual({ ip: '0.0.0.0', length: 0 });
  expect(parsePrefix('::ffff:0:0/95')).toBeUndefined();
});

describe('a flow', () => {
  const SHARE = { ports: [{ from: 6_379, to: 6_379 }], number: 3, name: 'cache' };
  const selection = selectionOf(
    {
      outbound: { ports: ALL_PORTS, include: undefined, exclude: [{ ip: '169.254.169.254', length: 32 }] },
      inbound: SELECT_ALL.inbound,
    },
    said({ outbound: '80,443,6379', 'include-outbound-cidrs': '10.0.0.0/8,169.254.0.0/16' }),
    { outbound: [SHARE], inbound: [SHARE] },
    { outbound: true, inbound: false },
  );

  it.each([
    ['outbound', '10.1.2.3', 80, true, 'nothing excludes it'],
    ['outbound', '10.1.2.3', 6_379, true, 'instance cache has port 6379'],
    ['outbound', '10.1.2.3', 81, false, 'nodesentry.io/outbound 80,443,6379 does not have port 81'],
    [
      'outbound',
      '169.254.169.254',
      80,
      false,
      'interception.excludeOutboundCidrs 169.254.169.254/32 has 169.254.169.254',
    ],
    ['outbound', '11.0.0.1', 80, false, 'nodesentry.io/include-outbound-cidrs does not have 11.0.0.1'],
    ['outbound', 'fd00::1', 80, false, 'nodesentry.io/include-outbound-cidrs does not have fd00::1'],
    ['inbound', '192.0.2.1', 6_379, true, 'instance cache has port 6379'],
    ['inbound', '192.0.2.1', 80, false, "no instance of the pod's app takes inbound port 80"],
  ] as const)('%s, %s at port %i', (direction, ip, port, intercepted, rule) => {
    expect(judge(selection, direction, ip, port)).toMatchObject({ intercepted, rule });
  });
});

it('what is told of a flow is what the rules say, whatever they are', () => {
  fc.assert(
    fc.property(
      randomSelection,
      fc.array(randomFlow, { minLength: 1, maxLength: 20 }),
      (selection, flows) => {
        for (const flow of flows) {
          const { intercepted, share } = judge(selection, flow.direction, flow.ip, flow.port);
          expect(intercepted ? (share?.name ?? 'own') : undefined).toBe(takenBy(selection, flow));
        }
      },
    ),
    { numRuns: 500 },
  );
});

it('two that say the same have the same key, and others another', () => {
  const rules = (exclude: string): DirectionRules => ({
    ...SELECT_ALL.outbound,
    exclude: said({ 'exclude-outbound-cidrs': exclude }).outbound.exclude,
  });
  const one = (exclude: string) =>
    selectionOf(SELECT_ALL, { ...SELECT_ALL, outbound: rules(exclude) }, NO_SHARES, BOTH) as FlowSelection;
  expect(one('10.0.0.0/8').key).toBe(one('10.0.0.0/8').key);
  expect(one('10.0.0.0/8').key).not.toBe(one('10.0.0.0/9').key);
});

it('10,000 CIDRs are compiled once for all pods that have them', () => {
  const exclude = Array.from({ length: 10_000 }, (_, n) => ({ ip: `10.${n >> 8}.${n & 255}.0`, length: 24 }));
  const node = { ...SELECT_ALL, outbound: { ...SELECT_ALL.outbound, exclude } };
  const compiled = ['80', '443'].map((ports) => {
    const selection = selectionOf(node, said({ outbound: ports }), NO_SHARES, BOTH) as FlowSelection;
    return compile(selection.outbound).cidrs[0];
  });
  expect(compiled[0]).toBe(compiled[1]);
  expect(compiled[0]?.prefixes.size).toBe(10_001);
});

describe('datagrams', () => {
  const NONE: DirectionRules = { ports: [], include: undefined, exclude: [] };
  const named = (ports: string): DirectionRules => ({ ...NONE, ports: parsePorts(ports) ?? [] });
  const nobody = { outbound: [], inbound: [] };
  const takes = { outbound: true, inbound: true };

  it('are intercepted where node, pod and an instance have the port', () => {
    const node = { outbound: named('53,443'), inbound: NONE };
    const of = (pod: string) =>
      datagramsOf(node, { outbound: named(pod), inbound: SELECT_ALL.inbound }, nobody, takes);
    expect(of('80')).toBeUndefined();
    expect(of('none')).toBeUndefined();
    expect(datagramsOf(node, SELECT_ALL, nobody, { outbound: false, inbound: true })).toBeUndefined();
    const selection = of('53,80');
    expect(judge(selection, 'outbound', '10.0.0.1', 53, true)).toMatchObject({ intercepted: true });
    expect(judge(selection, 'outbound', '10.0.0.1', 80, true)).toMatchObject({
      intercepted: false,
      rule: 'interception.outboundUdp 53,443 does not have port 80',
    });
    expect(judge(selection, 'outbound', '10.0.0.1', 443, true).rule).toBe(
      'nodesentry.io/outbound-udp 53,80 does not have port 443',
    );
  });

  it('go to the instance that has their port', () => {
    const share = { ports: [{ from: 53, to: 53 }], number: 7, name: 'dns' };
    const shares = { outbound: [share], inbound: [] };
    const node = { outbound: named('53,443'), inbound: NONE };
    const selection = datagramsOf(node, SELECT_ALL, shares, { outbound: false, inbound: false });
    expect(judge(selection, 'outbound', 'fd00::1', 53, true)).toMatchObject({ intercepted: true, share });
    expect(judge(selection, 'outbound', 'fd00::1', 443, true).rule).toBe(
      "no instance of the pod's app takes outbound UDP port 443",
    );
    expect(mayIntercept((selection as FlowSelection).inbound)).toBe(false);
  });
});
