/** What selections say, written as plainly as can be, and random ones to try it on. */

import fc from 'fast-check';
import type { FlowSelection, PortShare } from '../../src/datapath/selection.js';
import { selectionOf } from '../../src/datapath/selection.js';
import type { Prefix } from '../../src/net/ip.js';
import { ALL_PORTS, type PortRange } from '../../src/net/ports.js';
import type { DirectionRules, SelectedDirection } from '../../src/pods/selection.js';

export interface RandomFlow {
  readonly direction: SelectedDirection;
  /** Of the far end. */
  readonly ip: string;
  readonly port: number;
}

function bitsOf(ip: string): string {
  if (!ip.includes(':')) {
    return ip
      .split('.')
      .map((part) => Number(part).toString(2).padStart(8, '0'))
      .join('');
  }
  const [head = '', tail = ''] = ip.split('::');
  const groups = (text: string) => (text === '' ? [] : text.split(':'));
  const middle = Array.from({ length: 8 - groups(head).length - groups(tail).length }, () => '0');
  const all = ip.includes('::') ? [...groups(head), ...middle, ...groups(tail)] : groups(ip);
  return all.map((group) => Number.parseInt(group, 16).toString(2).padStart(16, '0')).join('');
}

function isIn({ ip, length }: Prefix, address: string): boolean {
  return (
    ip.includes(':') === address.includes(':') &&
    bitsOf(ip).slice(0, length) === bitsOf(address).slice(0, length)
  );
}

/** The name of the instance that takes the flow, `own` of the pod's own; undefined: it is left alone. */
export function takenBy(selection: FlowSelection | undefined, flow: RandomFlow): string | undefined {
  if (selection === undefined) {
    return 'own';
  }
  const { node, pod, shares, rest } = selection[flow.direction];
  for (const { ports, include, exclude } of [node, pod]) {
    const hasPort = ports.some(({ from, to }) => flow.port >= from && flow.port <= to);
    const isIncluded = include === undefined || include.some((prefix) => isIn(prefix, flow.ip));
    if (!hasPort || !isIncluded || exclude.some((prefix) => isIn(prefix, flow.ip))) {
      return undefined;
    }
  }
  const share = shares.find(({ ports }) =>
    ports.some(({ from, to }) => flow.port >= from && flow.port <= to),
  );
  return share?.name ?? (rest ? 'own' : undefined);
}

/** Few of each, so that they meet. */
const port = fc.constantFrom(
  1,
  53,
  80,
  81,
  255,
  256,
  443,
  511,
  512,
  6_379,
  8_080,
  9_092,
  65_279,
  65_280,
  65_535,
);
const range: fc.Arbitrary<PortRange> = fc
  .tuple(port, port)
  .map(([a, b]) => ({ from: Math.min(a, b), to: Math.max(a, b) }));
const ranges = fc.array(range, { maxLength: 4 });
const ip = fc.oneof(
  fc
    .tuple(fc.constantFrom(0, 10, 11, 192), fc.constantFrom(0, 1, 128), fc.constantFrom(0, 5), fc.nat(255))
    .map((parts) => parts.join('.')),
  fc
    .tuple(
      fc.constantFrom('fd00', 'fd01', '2001', '0'),
      fc.constantFrom('0', '1', '8000'),
      fc.constantFrom('1', 'ff', 'ab00'),
    )
    .map(([a, b, c]) => `${a}:${b}:0:0:0:0:1:${c}`),
);
const prefix: fc.Arbitrary<Prefix> = fc
  .tuple(ip, fc.constantFrom(0, 1, 7, 8, 9, 16, 24, 31, 32, 33, 64, 96, 97, 112, 128))
  .map(([address, length]) => ({ ip: address, length: Math.min(length, address.includes(':') ? 128 : 32) }));
const rules: fc.Arbitrary<DirectionRules> = fc.record({
  ports: fc.oneof({ weight: 2, arbitrary: fc.constant(ALL_PORTS) }, { weight: 1, arbitrary: ranges }),
  include: fc.oneof(
    { weight: 3, arbitrary: fc.constant(undefined) },
    { weight: 1, arbitrary: fc.array(prefix, { maxLength: 5 }) },
  ),
  exclude: fc.array(prefix, { maxLength: 2 }),
});
const shares = (base: number): fc.Arbitrary<PortShare[]> =>
  fc
    .array(fc.array(range, { minLength: 1, maxLength: 3 }), { maxLength: 3 })
    .map((all) =>
      all.map((ports, index) => ({ ports, number: base + index, name: `number ${base + index}` })),
    );

const each = <T>(value: fc.Arbitrary<T>) => fc.record({ outbound: value, inbound: value });

export const randomSelection: fc.Arbitrary<FlowSelection | undefined> = fc
  .tuple(each(rules), each(rules), each(shares(3)), each(fc.boolean()))
  .map(([node, pod, sharing, rest]) => selectionOf(node, pod, sharing, rest));

export const randomFlow: fc.Arbitrary<RandomFlow> = fc.record({
  direction: fc.constantFrom('outbound' as const, 'inbound' as const),
  ip,
  port: fc.oneof(port, fc.integer({ min: 1, max: 65_535 })),
});
