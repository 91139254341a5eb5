/** The agent as a user runs it, between a real API server, containerd and a proxy. */

import { join } from 'node:path';
import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import { TestAgent, TestProxy } from '../e2e/agent.js';
import { Containerd } from '../lab/containerd.js';
import { inNetns, tryRun, waitFor } from '../lab/exec.js';
import { Lab, REMOTE } from '../lab/lab.js';
import { type LabPod, reply } from '../lab/pod.js';
import { ControlPlane } from './control-plane.js';
import { ACCOUNT, RBAC } from './relayed-plane.js';

describe('an agent that follows containerd and Kubernetes', () => {
  let lab: Lab;
  let plane: ControlPlane;
  let containerd: Containerd;
  let agent: TestAgent;
  let proxy: TestProxy;
  let web: LabPod;

  /** Of a flow that the pod has just opened. */
  async function resolveDial(pod: LabPod) {
    const dialled = reply(await pod.app(['dial', REMOTE[4], '80']));
    expect(dialled).toMatchObject({ ok: true });
    const src = { ip: pod.ips[4], port: Number(dialled.localPort) };
    return agent.client.resolve({ proto: 'tcp', src, dst: { ip: REMOTE[4], port: 80 } });
  }

  async function runPod(namespace: string, name: string): Promise<LabPod> {
    const uid = await plane.schedulePod(namespace, name, { serviceAccountName: name });
    const pod = await containerd.runPod({ name, namespace, uid, runtime: 'runc' });
    await plane.setStatus(namespace, name, {
      phase: 'Running',
      podIP: pod.ips[4],
      podIPs: [{ ip: pod.ips[4] }, { ip: pod.ips[6] }],
    });
    return pod;
  }

  beforeAll(async () => {
    lab = await Lab.create();
    await lab.serve();
    plane = await ControlPlane.start({
      directory: join(lab.directory, 'k8s'),
      cleanup: lab.cleanup,
      netns: lab.node,
    });
    await plane.createNamespace(ACCOUNT.namespace);
    await plane.createFrom(RBAC, ACCOUNT.namespace);
    const taints = [{ key: 'nodesentry.io/agent-not-ready', effect: 'NoSchedule' }];
    await plane.call('POST', '/api/v1/nodes', { metadata: { name: 'node-a' }, spec: { taints } });
    await plane.createNamespace('shop');
    await plane.createServiceAccount('shop', 'web');
    // Beside the configuration, which names it by a relative path.
    await plane.writeKubeconfig(join(lab.directory, 'kubeconfig'), ACCOUNT);
    containerd = await Containerd.start(lab, 'ptp');
    web = await runPod('shop', 'web');
    agent = new TestAgent(lab, {
      sources: {
        cri: { endpoint: `unix://${containerd.socket}` },
        kubernetes: { kubeconfig: 'kubeconfig' },
      },
    });
    await agent.start();
    proxy = new TestProxy(lab, agent);
    // It would reset flows that have no name yet; here it is to show that they are intercepted all the same.
    await proxy.start('--allow-unidentified', '--resolve-timeout-ms', '500');
    await agent.adopted(2);
  });

  afterAll(async () => {
    await lab?.close();
  });

  test('enrols a pod by the label of its namespace, and names it by its own service account', async () => {
    await agent.reaches('web', 'NOT_ENROLLED');
    await plane.label('/api/v1/namespaces/shop', { 'nodesentry.io/intercept': 'enabled' });
    await agent.reaches('web', 'INTERCEPTED');
    const resolution = await resolveDial(web);
    expect(resolution).toMatchObject({
      assurance: 'DATAPATH_RECORDED',
      workload: { podUid: web.uid, spiffeId: 'spiffe://cluster.local/ns/shop/sa/web', runtime: 'runc' },
    });
    await proxy.flowFrom(resolution.original.src);
  });

  test('tells of its node that it is ready, and of a pod that it cannot intercept why', async () => {
    await waitFor('the node to be told of', async () => {
      const { metadata, spec } = await plane.call('GET', '/api/v1/nodes/node-a');
      const { 'nodesentry.io/status': status = '{}' } = (metadata.annotations ?? {}) as Record<
        string,
        string
      >;
      return !('taints' in (spec as object)) && (JSON.parse(status) as { ready?: boolean }).ready === true;
    });
    const uid = await plane.schedulePod('shop', 'on-host', { hostNetwork: true, serviceAccountName: 'web' });
    await agent.reaches('on-host', 'REFUSED');
    const events = async () => {
      const path = `/api/v1/namespaces/shop/events?fieldSelector=involvedObject.uid=${uid}`;
      return (await plane.call('GET', path)).items as { reason: string; message: string }[];
    };
    await waitFor('the event', async () => (await events()).length > 0, 30_000);
    expect(await events()).toMatchObject([
      { reason: 'NodeSentryRefused', message: expect.stringMatching(/^HOST_NETWORK: .*or hostNetwork$/) },
    ]);
    const { sources } = await agent.client.status();
    expect(sources.find(({ name }) => name === 'kubernetes')?.lastError).toBe('');
    await plane.deletePod('shop', 'on-host');
  });

  test('gives no name to a pod that only the runtime knows', async () => {
    const stray = await containerd.runPod({
      name: 'stray',
      namespace: 'shop',
      runtime: 'runc',
      labels: { 'nodesentry.io/intercept': 'enabled' },
    });
    const workload = await agent.reaches('stray', 'INTERCEPTED');
    expect(workload).toMatchObject({ spiffeId: '', serviceAccount: '' });
    await expect(resolveDial(stray)).rejects.toMatchObject({ code: 'NOT_SYNCED', status: 503 });
    await stray.stop();
  });

  test('loses nothing while the API server is away, not even when it is itself restarted meanwhile', async () => {
    await plane.stopApiServer('SIGKILL');
    const lastError = async () =>
      (await agent.client.status()).sources.find(({ name }) => name === 'kubernetes')?.lastError;
    await waitFor('the agent to notice', async () => (await lastError())?.includes('ECONNREFUSED'), 30_000);
    await agent.reaches('web', 'INTERCEPTED');
    expect((await resolveDial(web)).workload.serviceAccount).toBe('web');
    const stranger = { ip: '10.66.1.250', port: 1 };
    const unknown = agent.client.resolve({ proto: 'tcp', src: stranger, dst: { ip: REMOTE[4], port: 80 } });
    await expect(unknown).rejects.toMatchObject({ code: 'NOT_SYNCED' });

    await agent.stop('SIGKILL');
    // Nobody but the runtime has ever told of this one.
    const newcomer = await containerd.runPod({ name: 'newcomer', namespace: 'shop', runtime: 'runc' });
    const started = agent.start();
    await waitFor('the new agent to say what it waits for', async () => {
      const blockers = await agent.client.status().then(
        ({ blockers: names }): readonly string[] => names,
        (): string[] => [],
      );
      return blockers.includes('source kubernetes has not synced');
    });
    const remembered = await agent.reaches('web', 'INTERCEPTED');
    expect(remembered).toMatchObject({
      serviceAccount: 'web',
      spiffeId: 'spiffe://cluster.local/ns/shop/sa/web',
    });
    const known = await resolveDial(web);
    expect(known).toMatchObject({
      assurance: 'DATAPATH_RECORDED',
      workload: { podUid: web.uid, serviceAccount: 'web' },
    });
    await proxy.flowFrom(known.original.src);
    const table = await tryRun(...inNetns(lab.node, 'nft', ['list', 'table', 'inet', 'nodesentry']));
    expect(table.stdout).toContain(web.ips[4]);
    expect(table.stdout).toContain(web.ips[6]);
    await expect(resolveDial(newcomer)).rejects.toMatchObject({ code: 'NOT_SYNCED' });
    expect(await agent.workload('newcomer')).toMatchObject({ spiffeId: '', serviceAccount: '' });
    expect((await agent.client.status()).blockers).toContain('source kubernetes has not synced');
    await plane.startApiServer();
    await started;
    await agent.reaches('web', 'INTERCEPTED');
    expect((await resolveDial(web)).workload.serviceAccount).toBe('web');
    await newcomer.stop();
  });

  test('shows as metrics how well it follows', async () => {
    const socket = join(agent.runDir, 'http.sock');
    const { stdout } = await tryRun('curl', ['-sS', '--unix-socket', socket, 'http://localhost/metrics']);
    expect(stdout).toMatch(/nodesentry_source_last_event_age_seconds\{source="kubernetes"\} \d/);
    expect(stdout).toContain('nodesentry_source_relists_total{source="kubernetes"}');
  });
});
