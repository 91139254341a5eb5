/**
 * The proof that a pod's packets reach our program and would reach its listener, over a real pair of interfaces: by a frame
 * put into the stack, by one sent from the pod's end (as before Linux 5.18), and by the program alone where neither can be.
 */

import { spawn } from 'node:child_process';
import { join } from 'node:path';
import { createInterface } from 'node:readline';
import { afterEach, beforeEach, describe, expect, it } from 'vitest';
import {
  Canaries,
  type CanaryEntrance,
  type CanaryResult,
  type CanaryTarget,
} from '../../src/datapath/canary.js';
import { type EndpointRow, EndpointTables } from '../../src/datapath/endpoints.js';
import { Listeners } from '../../src/datapath/listeners.js';
import { type DatapathPrograms, MANIFEST, type Role } from '../../src/datapath/manifest.js';
import type { Attachments } from '../../src/kernel/attachment.js';
import { ClsactFilters } from '../../src/kernel/clsact.js';
import { kernelAtLeast } from '../../src/kernel/features.js';
import { SocketLookup } from '../../src/kernel/socket-lookup.js';
import { u32 } from '../../src/kernel/struct.js';
import { TcxLinks } from '../../src/kernel/tcx.js';
import { attachClsact, attachTcx, BpfObject, type BpfProgram, tcxSupported } from '../../src/native/bpf.js';
import { interfaceIndex } from '../../src/native/namespaces.js';
import { sendFrames } from '../../src/native/packets.js';
import type { PodUid } from '../../src/pods/pod.js';
import { Cleanup, fixture, Netns, temporaryBpffs } from '../unit/native-lab.js';
import { openIn } from './datapath-lab.js';

/** Linux 6.6. */
const ASSIGNS_REUSEPORT = kernelAtLeast('6.6');
const IPS = ['10.66.0.3', 'fd00:66::3'];
const cleanup = new Cleanup();
let node: Netns;
let pod: Netns;
let ifindex: number;
let datapath: DatapathPrograms;
let attachments: Attachments<Role>;
let target: CanaryTarget;
let entrance: CanaryEntrance | undefined;

beforeEach(() => {
  node = cleanup.owned(new Netns());
  pod = cleanup.owned(new Netns());
  node.ip(`link add name pod type veth peer name eth0 netns ${pod.name}`);
  node.ip('link set pod up');
  pod.ip('link set eth0 up');
  ifindex = node.run(() => interfaceIndex('pod')) ?? 0;
  datapath = openIn(cleanup, join(temporaryBpffs(cleanup), 'nodesentry'));
  const tables = new EndpointTables(datapath.maps, datapath.layouts);
  const row = tables.enrol('uid' as PodUid, ifindex, true);
  const plan = { ifindex, instance: 0, failureOpen: false, dropOther: false, bridgeIndex: 0 };
  tables.write(row, { ...plan, ips: IPS });
  attachments = tcxSupported()
    ? new TcxLinks<Role>(MANIFEST, datapath.linksPath)
    : new ClsactFilters<Role>(MANIFEST);
  attach(attachments);
  const inside = { netns: pod.path, name: 'eth0' };
  target = { ifindex, ips: IPS, endpoint: row.id, generation: row.generation, instance: 0, inside };
});

afterEach(() => cleanup.run());

function attach(by: Attachments<Role>): void {
  node.run(() => by.attach({ role: 'egress', ifindex }, datapath.programs.pod_egress));
}

function neighbour(): BpfProgram {
  const object = cleanup.owned(BpfObject.open(fixture('neighbour')));
  object.load();
  return object.program('swallow');
}

/** An old kernel: it knows no live frames. */
const NO_LIVE_FRAMES = {
  inject: () => {
    throw Object.assign(new Error('no live frames'), { code: 'EINVAL', errno: 22, syscall: 'bpf' });
  },
};

/** At once: a promise would be answered outside the namespace of the test. */
function refusal(): never {
  throw Object.assign(new Error('not permitted'), { code: 'EPERM', errno: 1, syscall: 'socket' });
}

function prove(asked: CanaryTarget, { old = false, send = sendFrames } = {}): Promise<CanaryResult[]> {
  const { maps, layouts, programs } = datapath;
  const canaries = new Canaries({
    maps,
    layouts,
    programs: { ...programs, canary: old ? NO_LIVE_FRAMES : programs.canary },
    entrance: () => entrance,
    send,
  });
  return node.run(() => ({ answer: canaries.prove([asked]) })).answer;
}

const LISTENER = { host: '::', port: 15001, family: 6 } as const;

/** With SO_REUSEPORT, as proxies have it: before Linux 6.6 no such socket can be assigned. */
async function listen(direction: 'outbound' | 'inbound' = 'outbound'): Promise<void> {
  const address = `TCP6-LISTEN:${LISTENER.port},reuseport,ipv6only=0`;
  const child = spawn('nsenter', [`--net=${node.path}`, 'socat', '-dd', address, 'EXEC:/bin/true'], {
    stdio: ['ignore', 'ignore', 'pipe'],
  });
  cleanup.add(child, () => child.kill('SIGKILL'));
  for await (const line of createInterface({ input: child.stderr })) {
    if (line.includes('listening on')) {
      break;
    }
  }
  const { slots } = datapath.layouts;
  const listeners = new Listeners({
    map: datapath.maps.listeners,
    slots,
    instances: [
      { name: 'default', number: 0, outbound: [], inbound: [], owner: { uid: 0 }, [direction]: [LISTENER] },
    ],
    log: { info: () => undefined, warn: () => undefined },
    referred: () => new Set(),
  });
  await node.run(() => ({ look: listeners.refresh() })).look;
}

function attachLookup(): void {
  node.run(() =>
    new SocketLookup(datapath.linksPath, 'socket-lookup').attach(datapath.programs.socket_lookup),
  );
}

function outcomes(map: 'deliveries' | 'ingress_deliveries' = 'deliveries'): number[] {
  const { deliveryTrial } = datapath.layouts;
  return [...datapath.maps[map].entries()].map(([, trial]) => deliveryTrial.number(trial, 'outcome'));
}

const PROVEN: CanaryResult = { kind: 'proven' };
const MISLED = { kind: 'unproven', reason: expect.stringContaining('look-up finds') };
const TAKEN_INBOUND = {
  kind: 'unproven',
  reason: expect.stringMatching(/^packets for the pod .* something else takes them first$/),
};
const TAKEN = { kind: 'unproven', reason: expect.stringContaining('something else takes them first') };

describe.each([
  { way: 'put into the stack', old: false },
  { way: 'sent from the pod’s end', old: true },
])('a canary that is $way', ({ old }) => {
  it('is proof, without a listener as well: then the failure policy is what a connection meets', async () => {
    expect(await prove(target, { old })).toEqual([PROVEN]);
    expect(new Set(outcomes())).toEqual(new Set([datapath.layouts.deliveries.noListener]));
  });

  it('is given to the listener, and leaves nothing at it', async () => {
    await listen();
    attachLookup();
    expect(await prove(target, { old })).toEqual([PROVEN]);
    const { assigned, lookedUp } = datapath.layouts.deliveries;
    expect(new Set(outcomes())).toEqual(new Set([ASSIGNS_REUSEPORT ? assigned : lookedUp]));
    expect([...datapath.maps.flows.entries()]).toEqual([]);
    expect(node.exec('ss', '-Htn')).toBe('');
  });

  if (tcxSupported()) {
    it('does not arrive where another program takes packets first', async () => {
      node.run(() => attachments.detach({ role: 'egress', ifindex }));
      cleanup.owned(node.run(() => attachTcx(neighbour(), ifindex, 'ingress')));
      attach(attachments);
      expect(await prove(target, { old })).toEqual([TAKEN]);
    });
  }

  it('does not arrive where a filter of tc takes packets first', async () => {
    // As a kernel without tcx has it: filters alone, in the order of their priorities.
    node.run(() => attachments.detach({ role: 'egress', ifindex }));
    attach(new ClsactFilters<Role>(MANIFEST));
    expect(await prove(target, { old })).toEqual([PROVEN]);
    node.run(() => attachClsact(neighbour(), ifindex, 'ingress', { priority: 1, handle: 1 }));
    expect(await prove(target, { old })).toEqual([TAKEN]);
  });

  it('comes out as another endpoint than it should', async () => {
    expect(await prove({ ...target, generation: target.generation + 1 }, { old })).toEqual([
      { kind: 'unproven', reason: expect.stringContaining('came out as generation') },
    ]);
  });
});

describe('before Linux 5.18', () => {
  it('a pod whose namespace nobody tells is verified as far as the program goes, and that is said', async () => {
    expect(await prove({ ...target, inside: undefined }, { old: true })).toEqual([
      { kind: 'program only', reason: expect.stringMatching(/^verified: program only/) },
    ]);
  });

  it('without CAP_NET_RAW as well', async () => {
    expect(await prove(target, { old: true, send: refusal })).toEqual([
      { kind: 'program only', reason: expect.stringContaining('CAP_NET_RAW is missing') },
    ]);
  });

  it('what the pod is sent without CAP_NET_RAW as well', async () => {
    entrance = { ifindex: 1, outside: { netns: node.path, name: 'nodesentry1' } };
    const tables = new EndpointTables(datapath.maps, datapath.layouts);
    const row = tables.rows()[0] as EndpointRow;
    const plan = { ifindex, instance: 0, failureOpen: false, dropOther: false, bridgeIndex: 0 };
    tables.write(row, { ...plan, inbound: true, ips: IPS });
    datapath.maps.steering.set(u32(0), datapath.layouts.steering.encode({ ifindex: 1 }));
    expect(await prove({ ...target, inbound: true }, { old: true, send: refusal })).toEqual([
      { kind: 'program only', reason: expect.stringContaining('CAP_NET_RAW is missing') },
    ]);
  });

  it.each([
    ['whose namespace is gone', { netns: '/run/netns/none', name: 'eth0' }],
    ['whose interface is gone', { netns: '', name: 'eth9' }],
  ])('a pod %s is silent', async (_what, { netns, name }) => {
    const inside = { netns: netns || pod.path, name };
    expect(await prove({ ...target, inside }, { old: true })).toEqual([
      { kind: 'silent', reason: expect.any(String) },
    ]);
  });
});

describe.each([
  { way: 'put into our own interface', old: false },
  { way: 'sent from the other end of it', old: true },
])('of what a pod is sent, a canary that is $way', ({ old }) => {
  const inbound = () => ({ ...target, inbound: true });
  const steer = () => ({ role: 'inbound-steer', ifindex: entrance?.ifindex ?? 0 }) as const;

  beforeEach(() => {
    const tables = new EndpointTables(datapath.maps, datapath.layouts);
    const row = tables.rows()[0] as EndpointRow;
    const plan = { ifindex, instance: 0, failureOpen: false, dropOther: false, bridgeIndex: 0 };
    tables.write(row, { ...plan, inbound: true, ips: IPS });
    node.ip('link add nodesentry0 type veth peer name nodesentry1');
    node.ip('link set nodesentry1 up');
    node.ip('link set nodesentry0 up');
    const own = node.run(() => interfaceIndex('nodesentry0')) ?? 0;
    entrance = { ifindex: own, outside: { netns: node.path, name: 'nodesentry1' } };
    datapath.maps.steering.set(u32(0), datapath.layouts.steering.encode({ ifindex: own }));
    node.run(() => {
      attachments.attach(steer(), datapath.programs.inbound_steer);
      attachments.attach({ role: 'ingress', ifindex }, datapath.programs.pod_ingress);
    });
  });

  it('is proof, without a listener as well', async () => {
    expect(await prove(inbound(), { old })).toEqual([PROVEN]);
    expect(outcomes('ingress_deliveries')).toEqual(Array(2).fill(datapath.layouts.deliveries.noListener));
  });

  it('is given to the inbound listener, and leaves nothing at it', async () => {
    await listen('inbound');
    attachLookup();
    expect(await prove(inbound(), { old })).toEqual([PROVEN]);
    const { assigned, lookedUp } = datapath.layouts.deliveries;
    expect(outcomes('ingress_deliveries')).toEqual(Array(2).fill(ASSIGNS_REUSEPORT ? assigned : lookedUp));
    expect([...datapath.maps.flows.entries()]).toEqual([]);
    expect(node.exec('ss', '-Htn')).toBe('');
  });

  it.each([
    ['the program at the pod’s interface', () => ({ role: 'ingress', ifindex }) as const],
    ['the program at our own interface', steer],
  ])('does not come back without %s', async (_what, attachment) => {
    node.run(() => attachments.detach(attachment()));
    expect(await prove(inbound(), { old })).toEqual([TAKEN_INBOUND]);
  });

  it('does not come back where our own interface is gone', async () => {
    entrance = undefined;
    expect(await prove(inbound(), { old })).toEqual([TAKEN_INBOUND]);
  });

  it('does not come back where a filter of tc takes packets first', async () => {
    node.run(() => attachments.detach({ role: 'ingress', ifindex }));
    const filters = new ClsactFilters<Role>(MANIFEST);
    node.run(() => filters.attach({ role: 'ingress', ifindex }, datapath.programs.pod_ingress));
    expect(await prove(inbound(), { old })).toEqual([PROVEN]);
    node.run(() => attachClsact(neighbour(), ifindex, 'egress', { priority: 1, handle: 1 }));
    expect(await prove(inbound(), { old })).toEqual([TAKEN_INBOUND]);
  });
});

describe('of a pod whose rate is limited', () => {
  beforeEach(() => {
    const tables = new EndpointTables(datapath.maps, datapath.layouts);
    const row = tables.rows()[0] as EndpointRow;
    const plan = { ifindex, instance: 0, failureOpen: false, dropOther: false, bridgeIndex: 0 };
    tables.write(row, { ...plan, shaped: true, ips: IPS });
  });

  it('it is the look-up that is tried, as that is what finds its listener', async () => {
    await listen();
    attachLookup();
    expect(await prove(target)).toEqual([PROVEN]);
    expect(new Set(outcomes())).toEqual(new Set([datapath.layouts.deliveries.lookedUp]));
  });

  it('it is no proof where the look-up finds another or none', async () => {
    await listen();
    expect(await prove(target)).toEqual([MISLED]);
  });
});

if (!ASSIGNS_REUSEPORT) {
  it('where the look-up does not find the listener, that is told', async () => {
    await listen();
    expect(await prove(target)).toEqual([MISLED]);
  });
}
