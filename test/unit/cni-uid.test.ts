/**
 * Runtimes that leave K8S_POD_UID out of CNI_ARGS: the pod is found by its name or its sandbox. The plugin, its socket, the
 * sources and the store are real; the API server and the datapath are stand-ins.
 */

import { existsSync, readdirSync, readFileSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { afterEach, beforeEach, describe, expect, test, vi } from 'vitest';
import { confirmation } from '../../src/pods/confirmation.js';
import type { Pod, PodUid } from '../../src/pods/pod.js';
import { KubernetesSource } from '../../src/pods/sources/kubernetes.js';
import { Admissions } from '../../src/reconcile/admission.js';
import { StartingPods } from '../../src/reconcile/starting-pods.js';
import { endpoint, pod, uid } from './api-fixture.js';
import { ADD, type Answer, attachment, CniFixture, NETNS } from './cni-fixture.js';
import { callPlugin, POD } from './cni-plugin-lab.js';
import { ApiServerStandIn, apiNamespace, apiPod } from './kubernetes-stand-in.js';

let node: CniFixture;
let server: ApiServerStandIn;
let abort: AbortController;
/** UIDs that the datapath was asked to put in place. */
let placed: PodUid[];

beforeEach(async () => {
  node = new CniFixture();
  server = new ApiServerStandIn();
  abort = new AbortController();
  placed = [];
  await server.listen();
  server.put('namespaces', apiNamespace('shop'));
});
afterEach(async () => {
  abort.abort();
  await server.kill();
  await node.close();
});

const webIs = (podUid: string, more: object = {}) =>
  server.put('pods', apiPod('web-0', { metadata: { namespace: 'shop', uid: podUid, ...more } }));
const nameless = (containerId: string, more: object = {}) => ({
  ...ADD,
  containerId,
  podUid: undefined,
  ...more,
});
const add = (containerId: string, more: object = {}): Promise<Answer> =>
  node.ask(nameless(containerId, more));
const pods = () => node.store.list().map((one) => [one.uid, one.sandboxId, one.sources.join('+')]);
const storedUid = (file: string) =>
  (JSON.parse(readFileSync(join(node.directory, file), 'utf8')) as { podUid: string }).podUid;
const otherNetns = (name: string) => {
  const path = join(node.folder, name);
  writeFileSync(path, '');
  return path;
};

async function withKubernetes(): Promise<void> {
  const kubeconfig = join(node.folder, 'kubeconfig');
  server.writeKubeconfig(kubeconfig);
  const kubernetes = new KubernetesSource({
    kubeconfig,
    node: 'node-a',
    handlers: {},
    store: node.store,
    log: node.log,
  });
  await kubernetes.start(abort.signal);
  await vi.waitFor(() => expect(server.watches('pods')).toBe(1), 15_000);
  const told = new Set<(of: PodUid) => void>();
  const place = async (uids: Iterable<PodUid>) => {
    for (const of of uids) {
      placed.push(of);
      for (const listener of told) {
        listener(of);
      }
    }
  };
  const admissions = new Admissions({
    reconciler: {
      reconcilePods: place,
      statusOf: (of) => (placed.includes(of) ? endpoint(of) : undefined),
      onStatus: (listener) => {
        told.add(listener);
        return () => told.delete(listener);
      },
    },
    unknown: confirmation(node.store, [kubernetes, node.source]),
    starting: new StartingPods(),
  });
  await node.start({ admissions });
}

describe('a pod that starts without its UID, where the API server is asked', () => {
  test('is the one that has its namespace and name', async () => {
    await withKubernetes();
    server.stallWatches('pods');
    webIs('uid-a');
    expect(await add('c1')).toEqual({ ok: true, state: 'INTERCEPTED' });
    expect(pods()).toEqual([['uid-a', 'c1', 'cni+kubernetes']]);
    expect(node.store.get(uid('uid-a'))).toMatchObject({ netns: NETNS, serviceAccount: 'web-0-sa' });
    expect(placed).toEqual(['uid-a']);
  });

  test('starts by way of the real plugin, with failure closed', async () => {
    await withKubernetes();
    webIs('uid-a');
    const configuration = {
      cniVersion: '1.0.0',
      name: 'pods',
      type: 'nodesentry-cni',
      socket: node.path,
      timeoutMs: 5_000,
      failure: 'closed',
      prevResult: ADD.prevResult,
    };
    const env = { ...POD, CNI_COMMAND: 'ADD', CNI_ARGS: 'K8S_POD_NAMESPACE=shop;K8S_POD_NAME=web-0' };
    expect(await callPlugin(env, JSON.stringify(configuration))).toMatchObject({ code: 0, stderr: '' });
    expect(pods()).toEqual([['uid-a', 'c1b2', 'cni+kubernetes']]);
  });

  test('keeps its UID over a restart of the agent, a second interface and a repeated ADD', async () => {
    await withKubernetes();
    webIs('uid-a');
    await add('c1');
    server.faults.set('get pods', 'hang');
    expect(await add('c1', { ifname: 'net1' })).toMatchObject({ ok: true });
    expect(await add('c1')).toMatchObject({ ok: true });
    expect(readdirSync(node.directory).map(storedUid)).toEqual(['uid-a', 'uid-a']);
    await node.restart();
    expect(pods()).toEqual([['uid-a', 'c1', 'cni']]);
  });

  test('is not its predecessor of the same name, of which the watch still tells', async () => {
    webIs('uid-old');
    await withKubernetes();
    await add('c-old', { netns: otherNetns('old') });
    server.stallWatches('pods');
    webIs('uid-new');
    expect(await add('c-new')).toMatchObject({ ok: true });
    expect(pods()).toEqual([
      ['uid-old', 'c-old', 'cni+kubernetes'],
      ['uid-new', 'c-new', 'cni+kubernetes'],
    ]);
  });

  test('is not the one of that name that is being deleted, and waits for its own', async () => {
    webIs('uid-old', { deletionTimestamp: '2026-11-25T00:00:00Z' });
    await withKubernetes();
    expect(await add('c1', { timeoutMs: 1_000 })).toMatchObject({
      code: 11,
      retry: true,
      msg: expect.stringContaining('the API server has not told of this pod yet'),
    });
    expect(placed).toEqual([]);
    const waiting = add('c1', { timeoutMs: 10_000 });
    webIs('uid-new');
    expect(await waiting).toMatchObject({ ok: true });
    expect(placed).toEqual(['uid-new']);
  });

  test('that has started is never named by its name alone afterwards: another may have it by then', async () => {
    await withKubernetes();
    expect(await add('c1', { timeoutMs: 100 })).toMatchObject({ ok: false });
    webIs('uid-b');
    await vi.waitFor(() => expect(node.store.get(uid('uid-b'))).toBeDefined(), 15_000);
    expect(await node.ask({ ...nameless('c1'), command: 'CHECK' })).toMatchObject({ ok: false });
    expect(pods()).toContainEqual(['c1', 'c1', 'cni']);
    expect(node.store.get(uid('uid-b'))?.sources).toEqual(['kubernetes']);
  });

  test('with its UID is asked for by that: the pod of another UID under its name is not it', async () => {
    await withKubernetes();
    webIs('uid-other');
    expect(await add('c1', { podUid: 'uid-web', timeoutMs: 200 })).toMatchObject({ ok: false });
    expect(placed).toEqual([]);
  });
});

describe('a pod that was announced without its UID, where the runtime is asked', () => {
  const fromCri = (fields: Partial<Pod>) => pod('web-0', { namespace: 'shop', sources: ['cri'], ...fields });
  beforeEach(() => node.start());

  test('is the one whose sandbox or namespace it is, once the runtime tells of that', async () => {
    node.source.add(attachment(nameless('c1')));
    node.source.add(attachment(nameless('c2', { podName: 'web-1', netns: otherNetns('two') })));
    expect(pods()).toEqual([
      ['c1', 'c1', 'cni'],
      ['c2', 'c2', 'cni'],
    ]);
    const two = { uid: uid('uid-2'), name: 'web-1', sandboxId: 'other', netns: otherNetns('two') };
    node.store.replaceSource('cri', [fromCri({ uid: uid('uid-1'), sandboxId: 'c1' }), fromCri(two)]);
    await Promise.resolve();
    expect(pods()).toEqual([
      ['uid-1', 'c1', 'cni+cri'],
      ['uid-2', 'other', 'cni+cri'],
    ]);
    expect(storedUid('c1@eth0')).toBe('uid-1');
    await node.ask({ version: 1, command: 'DEL', containerId: 'c1', ifname: 'eth0' });
    expect(pods()).toContainEqual(['uid-1', 'c1', 'cri']);
    expect(existsSync(join(node.directory, 'c1@eth0'))).toBe(false);
  });

  test('is not another one of its name, with another sandbox and another namespace', async () => {
    node.source.add(attachment(nameless('c1')));
    node.store.replaceSource('cri', [
      fromCri({ uid: uid('uid-old'), sandboxId: 'c-old', netns: otherNetns('old') }),
      fromCri({ uid: uid('uid-2'), name: 'web-1', sandboxId: 'c1' }),
    ]);
    await Promise.resolve();
    expect(pods()).toContainEqual(['c1', 'c1', 'cni']);
  });

  test('is told once under one UID, in an order that every listener hears alike', async () => {
    node.source.add(attachment(nameless('c1')));
    const heard: string[] = [];
    node.store.subscribe((changes) =>
      heard.push(changes.map(({ kind, pod: { uid: of } }) => `${kind} ${of}`).join()),
    );
    node.store.replaceSource('cri', [fromCri({ uid: uid('uid-1'), sandboxId: 'c1' })]);
    await Promise.resolve();
    expect(heard).toEqual(['upsert uid-1', 'upsert uid-1,remove c1']);
  });
});
