import { describe, expect, it } from 'vitest';
import { interceptionOf } from '../../src/pods/annotations.js';
import { ipsOf, type Pod, type PodUid, type SourceName } from '../../src/pods/pod.js';
import { type PodChange, PodStore } from '../../src/pods/pod-store.js';
import { runtimeKindOf } from '../../src/pods/runtime-kind.js';
import { SELECT_ALL } from '../../src/pods/selection.js';

function pod(uid: string, fields: Partial<Pod> = {}, source: SourceName = 'static'): Pod {
  return {
    uid: uid as PodUid,
    namespace: 'default',
    name: uid,
    serviceAccount: '',
    labels: {},
    annotations: {},
    ips: [],
    runtime: 'unknown',
    runtimeHandler: '',
    sandboxId: '',
    hostNetwork: false,
    sources: [source],
    ...fields,
  };
}

const uid = (text: string) => text as PodUid;

describe('PodStore', () => {
  it('grows its revision by one per true difference, and only then', () => {
    const store = new PodStore();
    const seen: (readonly PodChange[])[] = [];
    store.subscribe((changes) => seen.push(changes));
    store.replaceSource('static', []);
    expect(store.revision).toBe(0);
    store.replaceSource('static', [pod('a', { labels: { x: '1', y: '2' } }), pod('b')]);
    store.replaceSource('static', [pod('b'), pod('a', { labels: { y: '2', x: '1' } })]);
    expect(store.revision).toBe(1);
    store.replaceSource('static', [pod('a', { labels: { x: '1' } })]);
    expect(store.revision).toBe(2);
    expect(seen.map((changes) => changes.map(({ kind, pod }) => `${pod.uid} ${kind}`).sort())).toEqual([
      ['a upsert', 'b upsert'],
      ['a upsert', 'b remove'],
    ]);
  });

  it('has an epoch of its own each time', () => {
    expect(new PodStore().epoch).not.toBe(new PodStore().epoch);
  });

  it('knows which sources have delivered, even nothing', () => {
    const store = new PodStore();
    expect([...store.syncedSources()]).toEqual([]);
    store.replaceSource('cri', []);
    expect([...store.syncedSources()]).toEqual(['cri']);
  });

  it('joins sources by UID: the stronger one wins where it says something, addresses are united', () => {
    const store = new PodStore();
    const told = pod('a', {
      namespace: 'typo',
      serviceAccount: 'web',
      labels: { app: 'web' },
      ips: ['10.0.0.1', 'fd00::1'],
      runtime: 'runc',
      interface: 'veth1',
    });
    const observed = pod(
      'a',
      {
        ips: ['10.0.0.2', '10.0.0.1'],
        runtime: 'runsc',
        runtimeHandler: 'gvisor',
        sandboxId: 's1',
        netns: '/run/netns/a',
      },
      'cri',
    );
    store.replaceSource('cri', [observed]);
    expect(store.get(uid('a'))?.serviceAccount).toBe('');
    store.replaceSource('static', [told]);
    expect(store.get(uid('a'))).toEqual({
      ...told,
      ...observed,
      serviceAccount: 'web',
      labels: { app: 'web' },
      ips: ['10.0.0.2', '10.0.0.1', 'fd00::1'],
      sources: ['static', 'cri'],
    });
    store.replaceSource('cri', []);
    expect(store.get(uid('a'))).toEqual(told);
  });

  it('takes the addresses of an interface from the strongest source that names it; an annotation moves none', () => {
    const store = new PodStore();
    store.replaceSource('cni', [
      pod('a', { ips: ['10.0.0.1'], interfaceIps: { eth0: ['10.0.0.1'] } }, 'cni'),
    ]);
    store.replaceSource('kubernetes', [
      pod('a', { interfaceIps: { eth0: ['10.9.9.9'], net1: ['10.0.0.1', '10.77.0.1'] } }, 'kubernetes'),
    ]);
    const joined = store.get(uid('a'));
    expect(joined?.interfaceIps).toEqual({ eth0: ['10.0.0.1'], net1: ['10.77.0.1'] });
    expect(joined?.ips).toEqual(['10.0.0.1']);
    expect([ipsOf(joined as Pod, 'eth0', true), ipsOf(joined as Pod, 'net1', false)]).toEqual([
      ['10.0.0.1'],
      ['10.77.0.1'],
    ]);
    expect(ipsOf(joined as Pod, undefined, true)).toEqual(['10.0.0.1']);
    expect(ipsOf(joined as Pod, 'net2', false)).toEqual([]);
    store.replaceSource('static', [pod('a', { interfaceIps: { net1: ['10.88.0.1'] } })]);
    expect(store.get(uid('a'))?.interfaceIps?.net1).toEqual(['10.88.0.1']);
  });

  it.each(['constructor', '__proto__', 'toString'])('an interface may be called %s', (name) => {
    const store = new PodStore();
    const interfaceIps = Object.fromEntries([[name, ['10.77.0.1']]]);
    store.replaceSource('cni', [pod('a', { ips: ['10.0.0.1', '10.77.0.1'], interfaceIps }, 'cni')]);
    store.replaceSource('static', [pod('b', { ips: ['10.0.0.2'], interfaceIps: { net1: ['10.77.0.2'] } })]);
    expect(ipsOf(store.get(uid('a')) as Pod, name, false)).toEqual(['10.77.0.1']);
    expect(ipsOf(store.get(uid('b')) as Pod, name, false)).toEqual([]);
    expect(ipsOf(store.get(uid('b')) as Pod, name, true)).toEqual(['10.0.0.2']);
  });

  it('takes the service account from Kubernetes where that knows the pod, even none, unless the file names one', () => {
    const store = new PodStore();
    store.replaceSource('cri', [pod('a', { serviceAccount: 'label' }, 'cri'), pod('b', {}, 'cri')]);
    expect(store.list().map((one) => one.serviceAccount)).toEqual(['label', '']);
    store.replaceSource('kubernetes', [pod('a', {}, 'kubernetes'), pod('b', {}, 'kubernetes')]);
    expect(store.list().map((one) => one.serviceAccount)).toEqual(['', '']);
    store.replaceSource('static', [pod('a', { serviceAccount: 'file' })]);
    expect(store.get(uid('a'))?.serviceAccount).toBe('file');
  });

  it('takes the account that the configuration names for pods of the CRI only where no source knows theirs', () => {
    const store = new PodStore({ criServiceAccount: 'assumed' });
    const accounts = () => store.list().map((one) => one.serviceAccount);
    store.replaceSource('cri', [pod('a', {}, 'cri'), pod('b', { serviceAccount: 'label' }, 'cri')]);
    store.replaceSource('cni', [pod('c', {}, 'cni')]);
    expect(accounts()).toEqual(['assumed', 'label', '']);
    store.replaceSource('static', [pod('a', { serviceAccount: 'file' })]);
    expect(store.get(uid('a'))?.serviceAccount).toBe('file');
    store.replaceSource('static', []);
    store.replaceSource('kubernetes', [pod('a', {}, 'kubernetes')]);
    expect(store.get(uid('a'))?.serviceAccount).toBe('');
  });

  it('finds every pod that claims an address, and follows when the address moves', () => {
    const store = new PodStore();
    store.replaceSource('static', [
      pod('a', { ips: ['10.0.0.1'] }),
      pod('b', { ips: ['10.0.0.1', '10.0.0.2'] }),
    ]);
    expect(store.byIp('10.0.0.1').map((one) => one.uid)).toEqual(['a', 'b']);
    store.replaceSource('static', [pod('a', { ips: ['10.0.0.2'] })]);
    expect(store.byIp('10.0.0.1')).toEqual([]);
    expect(store.byIp('10.0.0.2').map((one) => one.uid)).toEqual(['a']);
  });

  it('never finds a pod on the host network by address', () => {
    const store = new PodStore();
    store.replaceSource('static', [pod('a', { ips: ['10.0.0.1'] })]);
    store.replaceSource('cri', [pod('a', { hostNetwork: true }, 'cri')]);
    expect(store.get(uid('a'))?.hostNetwork).toBe(true);
    expect(store.byIp('10.0.0.1')).toEqual([]);
  });

  it('remembers a removed pod for 60 seconds, unless it comes back', () => {
    let nowMs = 1000;
    const store = new PodStore({ nowMs: () => nowMs });
    store.replaceSource('static', [pod('a', { ips: ['10.0.0.1'] }), pod('b')]);
    store.replaceSource('static', []);
    expect(store.removed(uid('a'))).toMatchObject({ pod: { ips: ['10.0.0.1'] }, atMs: 1000 });
    nowMs += 59_999;
    expect(store.removed(uid('a'))).toBeDefined();
    store.replaceSource('static', [pod('a')]);
    expect(store.removed(uid('a'))).toBeUndefined();
    nowMs += 1;
    expect(store.removed(uid('b'))).toBeUndefined();
  });

  it('takes labels from Kubernetes alone where it knows the pod: none left means that the last one went', () => {
    const store = new PodStore();
    const copy = { labels: { 'nodesentry.io/intercept': 'enabled' }, annotations: { x: '1' } };
    store.replaceSource('cri', [pod('a', copy, 'cri')]);
    store.replaceSource('kubernetes', [pod('a', {}, 'kubernetes')]);
    expect(store.get(uid('a'))).toMatchObject({ labels: {}, annotations: {} });
    store.replaceSource('kubernetes', []);
    expect(store.get(uid('a'))).toMatchObject(copy);
  });

  it('carries the owner that a source names', () => {
    const store = new PodStore();
    const owner = { kind: 'Deployment', name: 'shop' };
    store.replaceSource('kubernetes', [pod('a', { owner }, 'kubernetes')]);
    store.replaceSource('cri', [pod('a', {}, 'cri')]);
    expect(store.get(uid('a'))?.owner).toEqual(owner);
  });

  it('remembers for 60 seconds what a pod was before one of its sources dropped it', () => {
    let nowMs = 1000;
    const store = new PodStore({ nowMs: () => nowMs });
    const all = () => {
      store.replaceSource('cri', [pod('a', { sandboxId: 's' }, 'cri')]);
      store.replaceSource('kubernetes', [pod('a', { serviceAccount: 'web' }, 'kubernetes')]);
    };
    all();
    expect(store.departed(uid('a'))).toBeUndefined();
    store.replaceSource('kubernetes', []);
    expect(store.departed(uid('a'))?.pod).toMatchObject({ serviceAccount: 'web', sandboxId: 's' });
    all();
    expect(store.departed(uid('a'))).toBeUndefined();
    store.replaceSource('cri', []);
    store.replaceSource('kubernetes', []);
    expect(store.departed(uid('a'))).toBeUndefined();
    expect(store.removed(uid('a'))?.pod).toMatchObject({ serviceAccount: 'web', sandboxId: 's' });
    all();
    store.replaceSource('kubernetes', []);
    nowMs += 60_001;
    expect(store.departed(uid('a'))).toBeUndefined();
  });

  it('gives out pods that nobody can change', () => {
    const store = new PodStore();
    store.replaceSource('static', [pod('a', { labels: { app: 'web' }, ips: ['10.0.0.1'] })]);
    const one = store.get(uid('a')) as unknown as {
      name: string;
      labels: Record<string, string>;
      ips: string[];
    };
    expect(() => {
      one.name = 'other';
    }).toThrow(TypeError);
    expect(() => {
      one.labels.app = 'other';
    }).toThrow(TypeError);
    expect(() => one.ips.push('10.0.0.2')).toThrow(TypeError);
  });

  it('stops telling a listener that has left', () => {
    const store = new PodStore();
    let calls = 0;
    const leave = store.subscribe(() => {
      calls += 1;
    });
    store.replaceSource('static', [pod('a')]);
    leave();
    store.replaceSource('static', []);
    expect(calls).toBe(1);
  });

  it('refuses a snapshot with one UID twice', () => {
    const store = new PodStore();
    expect(() => store.replaceSource('static', [pod('a'), pod('a')])).toThrow(RangeError);
    expect(store.list()).toEqual([]);
  });
});

describe('interceptionOf', () => {
  const intercept = (value: string) => ({ 'nodesentry.io/intercept': value });

  it.each([
    ['labelled', {}, {}, false],
    ['labelled', intercept('enabled'), {}, true],
    ['labelled', {}, intercept('enabled'), true],
    ['labelled', intercept('enabled'), intercept('disabled'), false],
    ['all', {}, {}, true],
    ['all', intercept('disabled'), {}, false],
    ['all', intercept('disabled'), intercept('enabled'), true],
  ] as const)('enrol %s, labels %o, annotations %o: %s', (enrol, labels, annotations, enrolled) => {
    expect(interceptionOf({ labels, annotations }, { enrol, failure: 'closed', other: 'pass' })).toEqual({
      enrolled,
      failure: 'closed',
      other: 'pass',
      mode: 'intercept',
      selection: SELECT_ALL,
      problems: [],
    });
  });

  it('reports a bad value and keeps to the default of that key alone', () => {
    const annotations = { 'nodesentry.io/failure': 'ajar', 'nodesentry.io/intercept': 'enabled' };
    expect(
      interceptionOf({ labels: {}, annotations }, { enrol: 'labelled', failure: 'open', other: 'pass' }),
    ).toEqual({
      enrolled: true,
      failure: 'open',
      other: 'pass',
      mode: 'intercept',
      selection: SELECT_ALL,
      problems: ['nodesentry.io/failure: expected closed or open, got "ajar"'],
    });
    expect(
      interceptionOf(
        { labels: intercept('yes'), annotations: { 'nodesentry.io/failure': 'open' } },
        { enrol: 'all', failure: 'closed', other: 'pass' },
      ),
    ).toEqual({
      enrolled: true,
      failure: 'open',
      other: 'pass',
      mode: 'intercept',
      selection: SELECT_ALL,
      problems: ['nodesentry.io/intercept: expected enabled or disabled, got "yes"'],
    });
  });

  it.each([
    ['intercept', undefined, 'intercept'],
    ['intercept', 'observe', 'observe'],
    ['observe', undefined, 'observe'],
    ['observe', 'intercept', 'observe'],
  ] as const)('mode %s on the node and %s of the pod are %s', (mode, own, expected) => {
    const annotations = own === undefined ? {} : { 'nodesentry.io/mode': own };
    const defaults = { enrol: 'all', failure: 'closed', other: 'pass', mode } as const;
    expect(interceptionOf({ labels: {}, annotations }, defaults).mode).toBe(expected);
  });

  it.each([
    ['pass', undefined, 'pass'],
    ['pass', 'drop', 'drop'],
    ['drop', undefined, 'drop'],
    ['drop', 'pass', 'drop'],
  ] as const)('other protocols: %s on the node and %s of the pod are %s', (other, own, expected) => {
    const annotations = own === undefined ? {} : { 'nodesentry.io/other-protocols': own };
    const { other: found } = interceptionOf(
      { labels: {}, annotations },
      { enrol: 'all', failure: 'closed', other },
    );
    expect(found).toBe(expected);
  });
});

describe('runtimeKindOf', () => {
  it.each([
    ['', '', 'runc'],
    ['', 'io.containerd.runc.v2', 'runc'],
    ['', 'io.containerd.kata.v2', 'rund'],
    ['', 'io.containerd.other.v1', 'unknown'],
    ['runc', 'io.containerd.runc.v2', 'runc'],
    ['crun', '', 'runc'],
    ['gvisor', 'io.containerd.runc.v2', 'runsc'],
    ['sandboxed', 'io.containerd.runsc.v1', 'runsc'],
    ['kata-fc', '', 'rund'],
    ['secure', 'io.containerd.rund.v2', 'rund'],
    ['secure', 'io.containerd.runc.v2', 'unknown'],
    ['secure', '', 'unknown'],
    ['constructor', '', 'unknown'],
  ])('handler %j of type %j is %s', (handler, type, kind) => {
    expect(runtimeKindOf({}, handler, type)).toBe(kind);
  });

  it('believes the configuration first, for handlers and for types', () => {
    expect(runtimeKindOf({ kata: 'runc' }, 'kata', '')).toBe('runc');
    expect(runtimeKindOf({ 'io.containerd.runc.v2': 'runc' }, 'secure', 'io.containerd.runc.v2')).toBe(
      'runc',
    );
    expect(runtimeKindOf({ 'my-gvisor': 'runsc' }, 'my-gvisor', 'io.containerd.runc.v2')).toBe('runsc');
  });
});
