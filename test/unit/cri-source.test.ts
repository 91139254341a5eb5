import { mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { status } from '@grpc/grpc-js';
import { afterEach, beforeEach, describe, expect, it, vi } from 'vitest';
import type { PodUid } from '../../src/pods/pod.js';
import { PodStore } from '../../src/pods/pod-store.js';
import { CriSource, type CriSourceOptions } from '../../src/pods/sources/cri.js';
import { CriStandIn, type Sandbox } from './cri-stand-in.js';

const NEVER_MS = 3_600_000;
const log = { info: vi.fn(), warn: vi.fn(), error: vi.fn() };

let folder: string;
let runtime: CriStandIn;
let store: PodStore;
let abort: AbortController;

beforeEach(async () => {
  folder = mkdtempSync(join(tmpdir(), 'nodesentry-cri-'));
  runtime = new CriStandIn(join(folder, 'cri.sock'));
  await runtime.listen();
  store = new PodStore();
  abort = new AbortController();
  vi.clearAllMocks();
});
afterEach(() => {
  abort.abort();
  runtime.kill();
  rmSync(folder, { recursive: true, force: true });
});

async function start(options: Partial<CriSourceOptions> = {}): Promise<CriSource> {
  const source = new CriSource({
    endpoint: runtime.endpoint,
    handlers: {},
    store,
    log,
    pollMs: 20,
    ...options,
  });
  await source.start(abort.signal);
  return source;
}

function sandbox(name: string, fields: Partial<Sandbox> = {}): Sandbox {
  return {
    id: `sb-${name}`,
    metadata: { name, uid: name, namespace: 'default', attempt: 0 },
    createdAt: '1700000000000000000',
    network: { ip: '10.66.0.3' },
    ...fields,
  };
}

const names = () => store.list().map((pod) => pod.name);
const podNamed = (uid: string) => store.get(uid as PodUid);
const eventually = (check: () => void) => vi.waitFor(check, { timeout: 5000, interval: 10 });
const callsOf = (name: string) => runtime.calls.filter((call) => call.startsWith(name)).length;
const warnings = () => JSON.stringify(log.warn.mock.calls);

/** The form of containerd's verbose info. */
function containerdInfo(interfaces: Record<string, object>, more: object = {}): object {
  return {
    pid: 4242,
    runtimeHandler: 'gvisor',
    runtimeType: 'io.containerd.runc.v2',
    cniResult: { Interfaces: interfaces, Routes: null },
    runtimeSpec: {
      linux: { namespaces: [{ type: 'pid' }, { type: 'network', path: '/var/run/netns/cni-1' }] },
    },
    ...more,
  };
}

describe('a sandbox', () => {
  it('becomes a pod with all that the runtime tells', async () => {
    runtime.sandboxes = [
      sandbox('web-0', {
        network: { ip: '10.66.0.3', additionalIps: [{ ip: 'FD00:66::3' }] },
        labels: { app: 'web', 'io.kubernetes.pod.name': 'web-0', 'io.kubernetes.pod.uid': 'web-0' },
        annotations: { 'nodesentry.io/intercept': 'enabled' },
        runtimeHandler: 'gvisor',
        info: containerdInfo({
          lo: { Sandbox: '/var/run/netns/cni-1' },
          eth0: { Sandbox: '/var/run/netns/cni-1' },
          veth689798b0: { Sandbox: '' },
        }),
      }),
    ];
    await start();
    expect(store.list()).toEqual([
      {
        uid: 'web-0',
        namespace: 'default',
        name: 'web-0',
        serviceAccount: '',
        labels: { app: 'web' },
        annotations: { 'nodesentry.io/intercept': 'enabled' },
        ips: ['10.66.0.3', 'fd00:66::3'],
        runtime: 'runsc',
        runtimeHandler: 'gvisor',
        sandboxId: 'sb-web-0',
        hostNetwork: false,
        netns: '/var/run/netns/cni-1',
        interface: 'veth689798b0',
        sources: ['cri'],
      },
    ]);
  });

  it.each([
    ['of a bridge CNI has its veth, not the bridge', { cni0: {}, veth1: {} }, 'veth1'],
    ['with two veths outside is left to the locator', { veth1: {}, veth2: {} }, undefined],
    ['with two interfaces of unknown names is left to the locator', { a: {}, b: {} }, undefined],
    ['of a CNI with its own names has the only one', { cali12345: { Sandbox: '' } }, 'cali12345'],
    ['of macvlan has none', { eth0: { Sandbox: '/n' } }, undefined],
  ])('%s', async (_, interfaces, expected) => {
    runtime.sandboxes = [sandbox('a', { info: containerdInfo(interfaces) })];
    await start();
    expect(podNamed('a')?.interface).toBe(expected);
  });

  it('of which only a pid is known has the namespace of that process', async () => {
    runtime.sandboxes = [sandbox('a', { info: { pid: 4242 } })];
    await start();
    expect(podNamed('a')?.netns).toBe('/proc/4242/ns/net');
  });

  it('on the host network is marked so, and has neither namespace nor interface', async () => {
    runtime.sandboxes = [
      sandbox('a', {
        network: {},
        linux: { namespaces: { options: { network: 'NODE' } } },
        info: containerdInfo({ veth1: {} }),
      }),
    ];
    await start();
    const pod = podNamed('a');
    expect(pod).toMatchObject({ hostNetwork: true, ips: [] });
    expect([pod?.netns, pod?.interface]).toEqual([undefined, undefined]);
  });

  it.each([
    'no JSON',
    '[]',
    JSON.stringify({
      pid: 'x',
      runtimeSpec: { linux: [] },
      cniResult: { Interfaces: ['a'] },
      runtimeType: 7,
    }),
  ])('whose verbose info is %j is a pod all the same', async (info) => {
    runtime.sandboxes = [sandbox('a', { info })];
    const source = await start();
    expect(podNamed('a')).toMatchObject({ ips: ['10.66.0.3'], runtime: 'runc' });
    expect(podNamed('a')?.netns).toBeUndefined();
    expect(source.lastError).toBeUndefined();
  });

  it('has the addresses of each of its interfaces, where the CNI result tells them', async () => {
    const inside = (IP: string) => ({ Sandbox: '/var/run/netns/cni-1', IPConfigs: [{ IP, Gateway: '' }] });
    const interfaces = {
      eth0: inside('10.66.0.3'),
      net1: inside('FD00:77::3'),
      veth1: { Sandbox: '', IPConfigs: null },
    };
    runtime.sandboxes = [sandbox('a', { info: JSON.stringify(containerdInfo(interfaces)) })];
    await start();
    expect(podNamed('a')?.interfaceIps).toEqual({ eth0: ['10.66.0.3'], net1: ['fd00:77::3'] });
  });

  it('of an unknown handler is unknown and reported once; the configuration can name it', async () => {
    runtime.sandboxes = [
      sandbox('a', { runtimeHandler: 'secure' }),
      sandbox('b', { runtimeHandler: 'secure' }),
    ];
    await start();
    expect(podNamed('a')?.runtime).toBe('unknown');
    expect(log.warn.mock.calls).toEqual([
      [{ runtimeHandler: 'secure', runtimeType: '' }, expect.stringContaining('runtimes.handlers')],
    ]);
    store = new PodStore();
    await start({ handlers: { secure: 'rund' } });
    expect(podNamed('a')?.runtime).toBe('rund');
  });

  it('with a UID that cannot be used is left out and reported once', async () => {
    runtime.sandboxes = [
      sandbox('a', { metadata: { name: 'a', uid: '', namespace: 'default' } }),
      sandbox('b'),
    ];
    await start();
    await eventually(() => expect(callsOf('ListPodSandbox')).toBeGreaterThan(3));
    expect(names()).toEqual(['b']);
    expect(log.warn).toHaveBeenCalledTimes(1);
    expect(warnings()).toContain('expected a pod UID');
  });

  it('takes its service account from the label of a root client, never from that of a pod', async () => {
    const told = { 'nodesentry.io/service-account': 'payments' };
    runtime.sandboxes = [
      sandbox('by-root', { labels: told }),
      sandbox('by-kubelet', { labels: { ...told, 'io.kubernetes.pod.uid': 'by-kubelet' } }),
      sandbox('by-annotation', { annotations: told }),
    ];
    await start();
    expect(podNamed('by-root')?.serviceAccount).toBe('payments');
    expect(podNamed('by-kubelet')?.serviceAccount).toBe('');
    expect(podNamed('by-annotation')?.serviceAccount).toBe('');
    expect(warnings()).toContain('a label of a pod cannot choose its service account');
  });

  it('that is not ready is no pod', async () => {
    runtime.sandboxes = [sandbox('a', { state: 'SANDBOX_NOTREADY' }), sandbox('b')];
    await start();
    expect(names()).toEqual(['b']);
  });

  it('that goes between the list and its status is no pod, and no error', async () => {
    runtime.sandboxes = [sandbox('a'), sandbox('b')];
    runtime.statusFaults.set('sb-a', status.NOT_FOUND);
    const source = await start();
    expect(names()).toEqual(['b']);
    expect(source.lastError).toBeUndefined();
  });

  it('made last counts where a pod has two', async () => {
    const metadata = { name: 'a', uid: 'a', namespace: 'default' };
    runtime.sandboxes = [
      sandbox('a', { id: 'new', createdAt: '1700000000000000002', metadata: { ...metadata, attempt: 1 } }),
      sandbox('a', { id: 'old', createdAt: '1700000000000000001', metadata: { ...metadata, attempt: 0 } }),
    ];
    await start();
    expect(podNamed('a')?.sandboxId).toBe('new');
  });

  it('is asked for once, and again only when the list tells something new or its address is missing', async () => {
    runtime.sandboxes = [sandbox('a'), sandbox('b', { network: {} })];
    await start();
    await eventually(() => expect(callsOf('PodSandboxStatus sb-b')).toBeGreaterThan(2));
    expect(callsOf('PodSandboxStatus sb-a')).toBe(1);
    runtime.sandboxes = [
      sandbox('a', { annotations: { x: '1' } }),
      sandbox('b', { network: { ip: '10.66.0.4' } }),
    ];
    await eventually(() => {
      expect(podNamed('a')?.annotations).toEqual({ x: '1' });
      expect(podNamed('b')?.ips).toEqual(['10.66.0.4']);
    });
  });
});

describe('CriSource follows the runtime', () => {
  it('by polling where it tells no events', async () => {
    runtime.version.runtimeVersion = '2.1.0';
    runtime.eventsImplemented = false;
    const source = await start();
    runtime.sandboxes = [sandbox('a')];
    await eventually(() => expect(names()).toEqual(['a']));
    runtime.sandboxes = [];
    await eventually(() => expect(names()).toEqual([]));
    expect(callsOf('GetContainerEvents')).toBe(1);
    expect(source.lastError).toBeUndefined();
  });

  it('at the first event, without polling', async () => {
    runtime.version.runtimeVersion = 'v2.1.0';
    await start({ pollMs: NEVER_MS, resyncMs: NEVER_MS });
    await eventually(() => expect(runtime.streams).toBe(1));
    for (const name of ['a', 'b']) {
      runtime.sandboxes = [sandbox(name)];
      runtime.event();
      await eventually(() => expect(names()).toEqual([name]));
    }
  });

  it('when the stream of events has ended, and opens another', async () => {
    runtime.version.runtimeVersion = '2.1.0';
    await start({ resyncMs: NEVER_MS });
    await eventually(() => expect(runtime.streams).toBe(1));
    runtime.sandboxes = [sandbox('a')];
    runtime.event();
    await eventually(() => expect(names()).toEqual(['a']));
    runtime.endEvents();
    runtime.sandboxes = [sandbox('b')];
    await eventually(() => expect(names()).toEqual(['b']));
    await eventually(() => expect(runtime.streams).toBe(1));
  });

  it('without taking the events of the kubelet from a runtime that gives each to one caller', async () => {
    runtime.version.runtimeVersion = '1.7.27';
    await start();
    await eventually(() => expect(callsOf('ListPodSandbox')).toBeGreaterThan(2));
    expect(callsOf('GetContainerEvents')).toBe(0);
  });

  it('at once when it is poked', async () => {
    const source = await start({ pollMs: NEVER_MS });
    runtime.sandboxes = [sandbox('a')];
    source.poke();
    await eventually(() => expect(names()).toEqual(['a']));
  });

  it('when it starts later than we do', async () => {
    runtime.kill();
    const source = await start();
    expect(source.lastError).toContain(`${runtime.endpoint}: Version: `);
    expect([...store.syncedSources()]).toEqual([]);
    runtime.sandboxes = [sandbox('a')];
    await runtime.listen();
    await eventually(() => expect(names()).toEqual(['a']));
    expect(source.lastError).toBeUndefined();
    expect(log.error).toHaveBeenCalledTimes(1);
  });

  it('across its restart, and keeps the last state while it is away', async () => {
    runtime.sandboxes = [sandbox('a')];
    const source = await start();
    runtime.kill();
    await eventually(() => expect(source.lastError).toBeDefined());
    expect(names()).toEqual(['a']);
    runtime.sandboxes = [sandbox('a'), sandbox('b')];
    await runtime.listen();
    await eventually(() => expect(names()).toEqual(['a', 'b']));
    expect(source.lastError).toBeUndefined();
  });

  it('with every pod but the one whose status fails, once there is a first snapshot', async () => {
    runtime.sandboxes = [sandbox('a')];
    const source = await start();
    runtime.statusFaults.set('sb-b', status.INTERNAL);
    runtime.sandboxes = [sandbox('a'), sandbox('b'), sandbox('c')];
    await eventually(() => expect(names()).toEqual(['a', 'c']));
    expect(source.lastError).toContain('PodSandboxStatus: sandbox sb-b: INTERNAL');
    runtime.statusFaults.clear();
    await eventually(() => expect(names().sort()).toEqual(['a', 'b', 'c']));
    expect(source.lastError).toBeUndefined();
  });

  it('and tries again before it takes a first snapshot that lacks a sandbox', async () => {
    runtime.statusFaults.set('sb-a', status.INTERNAL);
    runtime.sandboxes = [sandbox('a'), sandbox('b')];
    const source = await start();
    expect([...store.syncedSources()]).toEqual([]);
    expect(source.lastError).toContain('sb-a');
    await eventually(() => expect(names()).toEqual(['b']));
    expect(callsOf('PodSandboxStatus sb-a')).toBe(3);
  });

  it('but takes no first snapshot at all while every status fails', async () => {
    runtime.statusFaults.set('sb-a', status.INTERNAL);
    runtime.sandboxes = [sandbox('a')];
    const source = await start();
    for (let calls = 2; calls <= 5; calls += 1) {
      source.poke();
      await eventually(() => expect(callsOf('PodSandboxStatus sb-a')).toBeGreaterThanOrEqual(calls));
    }
    expect([...store.syncedSources()]).toEqual([]);
  });

  it('with a time limit on each call', async () => {
    runtime.sandboxes = [sandbox('a')];
    const source = await start({ deadlineMs: 200 });
    runtime.statusFaults.set('sb-b', 'hang');
    runtime.sandboxes = [sandbox('a'), sandbox('b'), sandbox('c')];
    await eventually(() => expect(source.lastError).toMatch(/PodSandboxStatus: .*[Dd]eadline exceeded/));
    expect(names()).toEqual(['a', 'c']);
  });

  it('until it is aborted, in the middle of a call too', async () => {
    runtime.sandboxes = [sandbox('a')];
    await start();
    runtime.statusFaults.set('sb-b', 'hang');
    runtime.sandboxes = [sandbox('a'), sandbox('b')];
    await eventually(() => expect(callsOf('PodSandboxStatus sb-b')).toBe(1));
    abort.abort();
    const { length } = runtime.calls;

    // Another one, still following, shows that there was something to follow.
    const other = { abort: new AbortController(), store: new PodStore() };
    try {
      runtime.sandboxes = [sandbox('c')];
      await new CriSource({ endpoint: runtime.endpoint, handlers: {}, store: other.store, log }).start(
        other.abort.signal,
      );
      expect(other.store.list().map((pod) => pod.name)).toEqual(['c']);
    } finally {
      other.abort.abort();
    }
    expect(names()).toEqual(['a']);
    expect(runtime.calls.slice(length)).toEqual(['Version', 'ListPodSandbox', 'PodSandboxStatus sb-c']);
    expect(log.error).not.toHaveBeenCalled();
  });
});
