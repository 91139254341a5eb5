import { execFileSync } from 'node:child_process';
import { readdirSync } from 'node:fs';
import { join } from 'node:path';
import { afterEach, beforeEach, describe, expect, it } from 'vitest';
import { type DatapathPrograms, MANIFEST, type Role } from '../../src/datapath/manifest.js';
import type { Attachment, Attachments } from '../../src/kernel/attachment.js';
import { CLSACT, ClsactFilters } from '../../src/kernel/clsact.js';
import { TcxLinks } from '../../src/kernel/tcx.js';
import { attachTcx, type BpfProgram, queryClsact, queryTcx, tcxSupported } from '../../src/native/bpf.js';
import { interfaceIndex } from '../../src/native/namespaces.js';
import { Cleanup, loadProbe, Netns, temporaryBpffs } from '../unit/native-lab.js';
import { openIn } from './datapath-lab.js';

const cleanup = new Cleanup();
let netns: Netns;
let ifindex: number;
let bpffs: string;
let linksPath: string;
/** The programs of this agent, and of one with another mark after it. */
let before: DatapathPrograms['programs'];
let after: typeof before;

beforeEach(() => {
  netns = cleanup.owned(new Netns());
  ifindex = netns.addVeth('pod');
  bpffs = join(temporaryBpffs(cleanup), 'nodesentry');
  const first = openIn(cleanup, bpffs);
  linksPath = first.linksPath;
  before = first.programs;
  after = openIn(cleanup, bpffs, { value: 0x80, mask: 0x80 }).programs;
});

afterEach(() => cleanup.run());

function tc(...args: string[]): string {
  return netns.exec('tc', ...args);
}

/** Before Linux 6.6 filters are the only way. */
const WAYS = [
  { way: 'a clsact filter', tcx: false },
  ...(tcxSupported() ? [{ way: 'a tcx link', tcx: true }] : []),
];

describe.each(WAYS)('by $way', ({ tcx }) => {
  let attachments: Attachments<Role>;
  let egress: Attachment<Role>;

  beforeEach(() => {
    attachments = make();
    egress = { role: 'egress', ifindex };
  });

  /** As an agent would that has just started. */
  const make = () => (tcx ? new TcxLinks<Role>(MANIFEST, linksPath) : new ClsactFilters<Role>(MANIFEST));
  const attach = (program: BpfProgram, at = egress) => netns.run(() => attachments.attach(at, program));
  const detach = (at = egress) => netns.run(() => attachments.detach(at));
  const isAttached = (program: BpfProgram, at = egress) =>
    netns.run(() => attachments.isAttached(at, program));
  /** Programs that run at the interface's ingress, ours and others'. */
  const running = (at = ifindex) =>
    netns.run(() =>
      tcx
        ? queryTcx(at, 'ingress').map((entry) => entry.programId)
        : [queryClsact(at, 'ingress', CLSACT)?.programId].filter((id) => id !== undefined),
    );

  it('a program is attached, kept, exchanged and taken off', () => {
    expect(isAttached(before.pod_egress)).toBe(false);
    expect(attach(before.pod_egress)).toBe('attached');
    expect(attach(before.pod_egress)).toBe('kept');
    expect(running()).toEqual([before.pod_egress.id]);
    expect(attach(after.pod_egress)).toBe('updated');
    expect(running()).toEqual([after.pod_egress.id]);
    expect(isAttached(before.pod_egress)).toBe(false);
    expect(isAttached(after.pod_egress)).toBe(true);
    expect(attachments.list()).toEqual([egress]);
    detach();
    expect(running()).toEqual([]);
    expect(attachments.list()).toEqual([]);
    expect(readdirSync(linksPath)).toEqual([]);
    detach();
  });

  it("somebody else's tcx program and filter stay beside it, untouched", () => {
    const probe = cleanup.owned(loadProbe());
    const other = cleanup.owned(probe.program('other'));
    const link = tcxSupported()
      ? cleanup.owned(netns.run(() => attachTcx(other, ifindex, 'ingress')))
      : undefined;
    tc('qdisc', 'add', 'dev', 'pod', 'clsact');
    const match = ['prio', '9', 'u32', 'match', 'u32', '0', '0', 'flowid', '1:1'];
    tc('filter', 'add', 'dev', 'pod', 'ingress', ...match);
    const filters = () => tc('filter', 'show', 'dev', 'pod', 'ingress', 'prio', '9');
    const theirs = link === undefined ? [] : [{ programId: other.id, linkId: link.id }];
    const links = () => (tcxSupported() ? netns.run(() => queryTcx(ifindex, 'ingress')) : []);
    const filtersBefore = filters();
    const untouched = () => {
      expect(links()).toEqual(expect.arrayContaining(theirs));
      expect(filters()).toBe(filtersBefore);
    };
    for (const step of [() => attach(before.pod_egress), () => attach(after.pod_egress), () => detach()]) {
      step();
      untouched();
    }
    expect(running()).toEqual(tcx ? [other.id] : []);
    expect(links()).toEqual(theirs);
    expect(tc('qdisc', 'show', 'dev', 'pod')).toContain('clsact');
  });

  it('an interface and a bridge are told apart by their roles', () => {
    netns.ip('link add br0 type bridge');
    const bridge = netns.run(() => interfaceIndex('br0') ?? 0);
    const steer: Attachment<Role> = { role: 'steer', ifindex: bridge };
    attach(before.pod_egress);
    expect(attach(before.bridge_steer, steer)).toBe('attached');
    expect(attachments.list()).toHaveLength(2);
    expect(attachments.list()).toEqual(expect.arrayContaining([egress, steer]));
    expect(running(bridge)).toEqual([before.bridge_steer.id]);
    detach();
    expect(running(bridge)).toEqual([before.bridge_steer.id]);
    detach(steer);
  });

  it('an interface that is gone is no reason to fail, and leaves no pin', () => {
    attach(before.pod_egress);
    netns.ip('link del pod');
    expect(isAttached(before.pod_egress)).toBe(false);
    detach();
    expect(attachments.list()).toEqual([]);
    expect(readdirSync(linksPath)).toEqual([]);
  });

  it('an interface that is gone cannot be attached to, with the reason', () => {
    netns.ip('link del pod');
    expect(() => attach(before.pod_egress)).toThrow(expect.objectContaining({ code: 'ENODEV' }));
    expect(readdirSync(linksPath)).toEqual([]);
    expect(attachments.list()).toEqual([]);
  });

  it('an ifindex that has come back under another interface is attached to anew', () => {
    attach(before.pod_egress);
    netns.ip('link del pod');
    netns.ip(`link add name again index ${ifindex} type veth peer name again-peer`);
    expect(isAttached(before.pod_egress)).toBe(false);
    expect(attach(before.pod_egress)).toBe('attached');
    expect(running()).toEqual([before.pod_egress.id]);
    expect(attach(before.pod_egress)).toBe('kept');
    detach();
    expect(running()).toEqual([]);
  });

  it('a program that somebody took off is attached again', () => {
    attach(before.pod_egress);
    if (tcx) {
      execFileSync('bpftool', ['link', 'detach', 'pinned', join(linksPath, `egress-${ifindex}`)]);
    } else {
      tc('filter', 'del', 'dev', 'pod', 'ingress', 'prio', String(CLSACT.priority));
    }
    expect(running()).toEqual([]);
    expect(isAttached(before.pod_egress)).toBe(false);
    expect(attach(before.pod_egress)).toBe('attached');
    expect(running()).toEqual([before.pod_egress.id]);
  });

  it('the next agent finds what this one attached, keeps it, and can take it off', () => {
    attach(before.pod_egress);
    const next = make();
    attachments = next;
    if (next instanceof ClsactFilters) {
      netns.run(() => next.adopt([1, ifindex, 9999]));
    }
    expect(attachments.list()).toEqual([egress]);
    expect(attach(before.pod_egress)).toBe('kept');
    detach();
    expect(running()).toEqual([]);
  });
});
