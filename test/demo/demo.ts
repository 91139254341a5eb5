/**
 * `make demo`: three real pods per topology, one under runc, one under gVisor, one in a microVM, each dialling an
 * address it knows nothing special about, and dialled by a host that knows nothing of it. What the node proxy saw, and whose
 * flow the agent says it was.
 * With DEMO_JSON=path the table is also written as JSON.
 */

import { writeFileSync } from 'node:fs';
import { enrolled, staticPod, TestAgent, TestProxy } from '../e2e/agent.js';
import { BOTH_WAYS, INBOUND_WORDS } from '../e2e/scene.js';
import { keepCniCache } from '../lab/cni-cache.js';
import { Containerd } from '../lab/containerd.js';
import { inNetns, tryRun } from '../lab/exec.js';
import { buildApp } from '../lab/image.js';
import { Lab, REMOTE } from '../lab/lab.js';
import { MicroVms } from '../lab/microvm.js';
import { type LabPod, reply, type Topology } from '../lab/pod.js';

type Direction = 'EGRESS' | 'INGRESS';

/** The remote, by the node's own network. */
const CLIENT = { 4: '10.199.0.2', 6: 'fd00:199::2' } as const;

interface Row {
  readonly pod: string;
  readonly runtime: string;
  readonly topology: Topology;
  readonly family: 4 | 6;
  readonly direction: Direction;
  readonly originalDst: string;
  readonly proxySaw: { readonly peer: string; readonly local: string };
  readonly resolved: string;
  readonly assurance: string;
  readonly ok: boolean;
}

const RUNTIME_NAMES: Readonly<Record<string, string>> = { runc: 'runc', runsc: 'gVisor', rund: 'microVM' };

function say(text: string): void {
  process.stdout.write(`${text}\n`);
}

function socketText(ip: string, port: number): string {
  return ip.includes(':') ? `[${ip}]:${port}` : `${ip}:${port}`;
}

interface Node {
  readonly lab: Lab;
  readonly topology: Topology;
  readonly agent: TestAgent;
  readonly proxy: TestProxy;
}

/** One dial, by the pod or to it: who dialled what, what the proxy logged, what the identity API answers. */
async function dial(
  pod: LabPod,
  family: 4 | 6,
  direction: Direction,
  { lab, topology, agent, proxy }: Node,
): Promise<Row> {
  const isOut = direction === 'EGRESS';
  const [from, to] = isOut ? [pod.ips[family], REMOTE[family]] : [CLIENT[family], pod.ips[family]];
  const originalDst = socketText(to, 80);
  const name = `${pod.namespace}/${pod.name}`;
  const base = { pod: name, runtime: pod.runtime, topology, family, direction, originalDst };
  const words = ['dial', to, '80'];
  const dialled = reply(
    isOut ? await pod.app(words) : await tryRun(...inNetns(lab.remote, await buildApp(), words)),
  );
  if (!dialled.ok) {
    const failed = `${String(dialled.failed)}: ${String(dialled.error)}`;
    return { ...base, proxySaw: { peer: '-', local: '-' }, resolved: failed, assurance: '-', ok: false };
  }
  const port = Number(dialled.localPort);
  const peer = socketText(from, port);
  const saw = await proxy.flowFrom(peer);
  const resolution = await agent.client.resolve({
    proto: 'tcp',
    src: { ip: from, port },
    dst: { ip: to, port: 80 },
  });
  const { podUid, namespace, podName, spiffeId } = resolution.workload;
  const ok =
    saw.originalDst === originalDst &&
    podUid === pod.uid &&
    resolution.direction === direction &&
    resolution.assurance === 'DATAPATH_RECORDED';
  return {
    ...base,
    proxySaw: { peer: saw.peer, local: saw.originalDst },
    resolved: `${namespace}/${podName} ${spiffeId}`,
    assurance: resolution.assurance,
    ok,
  };
}

async function show(topology: Topology): Promise<Row[]> {
  const restore = keepCniCache();
  const lab = await Lab.create();
  const close = () => lab.close().finally(restore);
  const abort = () => void close().finally(() => process.exit(130));
  process.once('SIGINT', abort);
  process.once('SIGTERM', abort);
  try {
    say(`\n${topology} network: a node, and a remote host that owns ${REMOTE[4]} and ${REMOTE[6]}`);
    await lab.serve();
    const containerd = await Containerd.start(lab, topology);
    const microvms = new MicroVms(lab, topology, containerd.network);
    say('  starting three pods: runc and gVisor by containerd, a QEMU microVM wired as Kata wires one');
    const pods = await Promise.all([
      containerd.runPod({ name: 'web-runc', runtime: 'runc', labels: enrolled('web-runc') }),
      containerd.runPod({ name: 'web-gvisor', runtime: 'runsc', labels: enrolled('web-gvisor') }),
      microvms.runPod({ name: 'web-microvm' }),
    ]);
    say('  starting the agent (sources: CRI, and a static file for the microVM) and the reference proxy');
    const agent = new TestAgent(lab, {
      sources: { cri: { endpoint: `unix://${containerd.socket}` }, static: { file: 'pods.yaml' } },
      instances: [BOTH_WAYS],
    });
    agent.writePods(pods.filter(({ runtime }) => runtime === 'rund').map((pod) => staticPod(pod)));
    await agent.start();
    const proxy = new TestProxy(lab, agent);
    await proxy.start(...INBOUND_WORDS);
    await agent.adopted(4);
    const node = { lab, topology, agent, proxy };
    const rows: Row[] = [];
    for (const pod of pods) {
      await agent.reaches(pod.name, 'INTERCEPTED');
      reply(await pod.app(['server', '80']));
      for (const family of [4, 6] as const) {
        say(`  ${pod.name} (${RUNTIME_NAMES[pod.runtime]}) dials ${socketText(REMOTE[family], 80)}`);
        rows.push(await dial(pod, family, 'EGRESS', node));
        say(`  ${CLIENT[family]} dials ${pod.name} at ${socketText(pod.ips[family], 80)}`);
        rows.push(await dial(pod, family, 'INGRESS', node));
      }
    }
    say(`\n$ nodesentry pods\n${(await agent.cli('pods')).stdout.trimEnd()}`);
    return rows;
  } finally {
    process.off('SIGINT', abort);
    process.off('SIGTERM', abort);
    await close();
  }
}

function table(rows: readonly Row[]): string {
  const cells = [
    [
      'POD',
      'RUNTIME',
      'NETWORK',
      'DIRECTION',
      'THE PROXY SAW: PEER',
      'ORIGINAL DESTINATION',
      'THE AGENT SAYS IT IS',
      'ASSURANCE',
      'OK',
    ],
    ...rows.map((row) => [
      row.pod,
      RUNTIME_NAMES[row.runtime] ?? row.runtime,
      row.topology,
      row.direction,
      row.proxySaw.peer,
      row.proxySaw.local,
      row.resolved.split(' ')[1] ?? row.resolved,
      row.assurance,
      row.ok ? 'yes' : 'NO',
    ]),
  ];
  const widths = (cells[0] ?? []).map((_, column) =>
    Math.max(...cells.map((line) => line[column]?.length ?? 0)),
  );
  return cells
    .map((line) =>
      line
        .map((cell, column) => cell.padEnd(widths[column] ?? 0))
        .join('  ')
        .trimEnd(),
    )
    .join('\n');
}

async function main(): Promise<number> {
  if (process.getuid?.() !== 0) {
    process.stderr.write(
      'make demo: needs root: it makes network namespaces and loads BPF programs in them\n',
    );
    return 1;
  }
  const rows: Row[] = [];
  for (const topology of ['ptp', 'bridge'] as const) {
    rows.push(...(await show(topology)));
  }
  const { DEMO_JSON } = process.env;
  if (DEMO_JSON !== undefined && DEMO_JSON !== '') {
    writeFileSync(DEMO_JSON, `${JSON.stringify(rows, null, 2)}\n`);
    say(`\nwritten to ${DEMO_JSON}`);
  }
  const failed = rows.filter(({ ok }) => !ok).length;
  say(failed === 0 ? '\nAll of them were intercepted and named:' : `\n${failed} of ${rows.length} were not:`);
  say(table(rows));
  return failed === 0 ? 0 : 1;
}

main().then(
  (code) => {
    process.exitCode = code;
  },
  (error: unknown) => {
    process.stderr.write(`make demo: ${error instanceof Error ? error.message : String(error)}\n`);
    process.exitCode = 1;
  },
);
