/**
 * What a first packet costs in pod_egress with 10 CIDRs and ranges of ports on the node, and with 10,000 and 1,000:
 * BPF_PROG_TEST_RUN, medians of rounds in which they take turns. What belongs to an open connection meets none of it.
 *
 *   make bench-selection [ROUNDS=7]
 *
 * `the same`: one packet 1,000,000 times, all of it in the caches. `different`: 20,000 destinations in turn, once each.
 */

import { join } from 'node:path';
import { readLayouts } from '../../src/datapath/layouts.js';
import { selectionOf } from '../../src/datapath/selection.js';
import { BpfObject } from '../../src/native/bpf.js';
import { withNetns } from '../../src/native/namespaces.js';
import { ALL_PORTS } from '../../src/net/ports.js';
import type { PodUid } from '../../src/pods/pod.js';
import { SELECT_ALL } from '../../src/pods/selection.js';
import { frame } from '../bpf/packets.js';
import { addAddress, adopt, connectInside, FAR, POD, tablesOf } from '../bpf/test-run.js';
import { Cleanup, Netns } from '../unit/native-lab.js';

const ROUNDS = Number(process.env.ROUNDS ?? 7);
const REPEATS = 1_000_000;
const DESTINATIONS = 20_000;
const OBJECT = join(import.meta.dirname, '../../build/bpf/intercept.bpf.o');

const cleanup = new Cleanup();
const node = cleanup.owned(new Netns());
const ifindex = node.addVeth('pod');
const bridgeIndex = node.addVeth('bridge');
node.exec('sysctl', '-qw', 'net.ipv4.ip_forward=1');
addAddress(node.path, POD[4]);
addAddress(node.path, FAR[4]);
const listening = cleanup.owned(await connectInside(node.path, FAR[4], POD[4]));

async function build(cidrs: number, ranges: number) {
  const object = cleanup.owned(BpfObject.open(OBJECT));
  object.load();
  const layouts = readLayouts(object);
  const tables = tablesOf(object, layouts);
  await adopt(object, layouts, node.fd, listening.port, 'outbound');
  // 10.0.0.0 and up are excluded, spread so that the trie has no short ways.
  const exclude = Array.from({ length: cidrs }, (_, n) => {
    const at = Math.floor((n * 65_536) / cidrs);
    return { ip: `10.${at >> 8}.${at & 255}.0`, length: 24 };
  });
  const ports = Array.from({ length: ranges }, (_, n) => {
    const from = 1 + Math.floor((n * 65_000) / ranges);
    return { from, to: from + Math.floor(32_500 / ranges) };
  });
  const selection =
    cidrs === 0
      ? undefined
      : selectionOf(
          { ...SELECT_ALL, outbound: { ports: ALL_PORTS, include: undefined, exclude } },
          { ...SELECT_ALL, outbound: { ports, include: undefined, exclude: [] } },
          { outbound: [], inbound: [] },
          { outbound: true, inbound: true },
        );
  const row = tables.enrol('pod-uid' as PodUid, ifindex, true);
  // At a bridge port, for elsewhere a test run may assign no socket.
  const plan = { ifindex, instance: 0, failureOpen: false, dropOther: false, bridgeIndex, ips: [POD[4]] };
  tables.write(row, { ...plan, selection });
  const program = cleanup.owned(object.program('pod_egress'));
  const context = Buffer.alloc(192);
  context.writeUInt32LE(ifindex, 40);
  const run = (data: Buffer, repeat: number) =>
    withNetns(node.fd, () => program.testRun({ data, context, repeat }).durationNs);
  return {
    same: (data: Buffer) => run(data, REPEATS),
    different: (frames: readonly Buffer[]) =>
      frames.reduce((sum, data) => sum + run(data, 1), 0) / frames.length,
  };
}

function median(values: readonly number[]): number {
  return [...values].sort((a, b) => a - b)[Math.floor(values.length / 2)] ?? Number.NaN;
}

try {
  const builds = { none: await build(0, 0), few: await build(10, 10), many: await build(10_000, 1_000) };
  const names = Object.keys(builds) as (keyof typeof builds)[];
  // Port 1 is in the first range of either; 192.0.2.1 in no CIDR, 10.0.0.1 in the first one of either.
  const far = (dst: string) => frame({ src: POD[4], dst, dport: 1 });
  const kept = Array.from({ length: DESTINATIONS }, (_, n) => far(`11.${(n >> 8) & 255}.${n & 255}.9`));
  const left = Array.from({ length: DESTINATIONS }, (_, n) =>
    far(`10.${(n * 13) & 255}.${(n >> 8) & 255}.9`),
  );
  const cases: Record<string, (name: keyof typeof builds) => number> = {
    'intercepted, the same': (name) => builds[name].same(far('192.0.2.1')),
    'intercepted, different': (name) => builds[name].different(kept),
    'excluded, different': (name) => builds[name].different(left),
    'excluded, the same': (name) => builds[name].same(far('10.0.0.1')),
  };
  console.log(
    '| first packets, ns | no selection | 10 CIDRs, 10 ranges | 10,000 CIDRs, 1,000 ranges | ratio of the last two |',
  );
  console.log('|---|---|---|---|---|');
  for (const [title, measure] of Object.entries(cases)) {
    const taken = new Map(names.map((name) => [name, [] as number[]]));
    for (let round = 0; round < ROUNDS; round++) {
      for (const name of names) {
        taken.get(name)?.push(measure(name));
      }
    }
    const cells = names.map((name) => median(taken.get(name) ?? []));
    const ratios = (taken.get('many') ?? []).map(
      (value, at) => value / (taken.get('few')?.[at] ?? Number.NaN),
    );
    const spread = `${Math.min(...ratios).toFixed(2)}–${Math.max(...ratios).toFixed(2)}`;
    const texts = cells.map((value) => value.toFixed(0));
    console.log(`| ${[title, ...texts, `${median(ratios).toFixed(3)} (${spread})`].join(' | ')} |`);
  }
} finally {
  await cleanup.run();
}
process.exit(0);
