/** What doctor tells of the API server and of the CNI plugin. */

import { chmodSync, copyFileSync, mkdirSync, mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { createServer, type Server, type Socket } from 'node:net';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterEach, beforeEach, describe, expect, test, vi } from 'vitest';
import { install } from '../../src/cni/install.js';
import { parseConfig } from '../../src/config/load.js';
import { type CheckResult, runChecks } from '../../src/doctor/check.js';
import { cniChecks } from '../../src/doctor/cni.js';
import { kubernetesChecks } from '../../src/doctor/kubernetes.js';
import { CALICO, CILIUM, CniNode, PLAIN } from './cni-node.js';
import { PLUGIN } from './cni-plugin-lab.js';
import { ApiServerStandIn, apiPod, status } from './kubernetes-stand-in.js';

const lineOf = ({ status: level, found, advice }: CheckResult) => ({ level, found, advice });

describe('the API server', () => {
  let folder: string;
  let kubeconfig: string;
  let server: ApiServerStandIn;

  beforeEach(async () => {
    folder = mkdtempSync(join(tmpdir(), 'nodesentry-doctor-'));
    kubeconfig = join(folder, 'kubeconfig');
    server = new ApiServerStandIn();
    await server.listen();
    server.writeKubeconfig(kubeconfig);
    server.put('pods', apiPod('web'));
  });
  afterEach(async () => {
    await server.kill();
    rmSync(folder, { recursive: true, force: true });
  });

  async function look(deadlineMs = 5_000, more = ''): Promise<ReturnType<typeof lineOf>> {
    const config = parseConfig(
      `node: node-a\nsources: {kubernetes: {kubeconfig: ${JSON.stringify(kubeconfig)}${more}}}`,
      join(folder, 'config.yaml'),
    );
    const results = await runChecks(kubernetesChecks(config, deadlineMs));
    expect(results).toHaveLength(1);
    expect(results[0]?.name).toBe('Kubernetes');
    return lineOf(results[0] as CheckResult);
  }

  const forbidden = (what: string) => ({
    status: 403,
    body: status(403, 'Forbidden', `User "u" cannot ${what}`),
  });

  test('is not asked where it is no source', () => {
    expect(kubernetesChecks(parseConfig('sources: {static: {file: a.yaml}}', 'config.yaml'))).toEqual([]);
  });

  test('that does not allow to tell it anything is a warning, and none where nothing is to be told', async () => {
    for (const what of ['create events', 'patch events', 'get nodes', 'patch nodes']) {
      server.faults.set(what, forbidden(what));
    }
    expect(await look()).toMatchObject({
      level: 'warn',
      found: expect.stringMatching(
        /does not allow us to create events, patch events, get nodes, patch nodes: /,
      ),
      advice: expect.stringContaining('deploy/base/rbac.yaml'),
    });
    expect((await look(5_000, ', events: false, removeStartupTaint: false')).found).toMatch(
      /does not allow us to patch nodes: /,
    );
    server.calls.splice(0);
    const off = ', events: false, removeStartupTaint: false, annotateNode: false';
    expect(await look(5_000, off)).toMatchObject({ level: 'ok' });
    expect(server.calls.filter(({ what }) => /nodes|events/.test(what))).toEqual([]);
  });

  test('that allows everything is ok, and leaves nothing open behind', async () => {
    expect(await look()).toEqual({
      level: 'ok',
      found: `${server.url} answers, and allows all that is needed`,
      advice: '',
    });
    expect(server.calls.map(({ what }) => what).sort()).toEqual([
      'create events',
      'get namespaces',
      'get nodes',
      'get pods',
      'list namespaces',
      'list pods',
      'patch events',
      'patch nodes',
      'watch namespaces',
      'watch pods',
    ]);
    await vi.waitFor(() => expect([server.watches('pods'), server.watches('namespaces')]).toEqual([0, 0]));
    const [list] = server.callsOf('list pods');
    expect(list?.searchParams.get('fieldSelector')).toBe('spec.nodeName=node-a');
  });

  test.each([
    ['list pods'],
    ['get pods'],
    ['watch pods'],
    ['list namespaces'],
    ['get namespaces'],
    ['watch namespaces'],
  ])('that forbids to %s is told by this name', async (what) => {
    server.faults.set(what, forbidden(what));
    expect(await look()).toMatchObject({
      level: 'fail',
      found: `${server.url} answers, but does not allow us to ${what}`,
      advice: expect.stringContaining('deploy/base/rbac.yaml'),
    });
  });

  test('that forbids several things is told once', async () => {
    for (const what of ['watch pods', 'list namespaces']) {
      server.faults.set(what, forbidden(what));
    }
    expect((await look()).found).toMatch(/does not allow us to watch pods, list namespaces$/);
  });

  test('that knows no pod of this node hints at the name of the node', async () => {
    server.delete('pods', 'web', 'default');
    expect(await look()).toMatchObject({
      level: 'warn',
      found: `${server.url} knows no pod of the node "node-a"`,
      advice: expect.stringContaining('`node`'),
    });
  });

  test('that does not take the credentials is one line', async () => {
    for (const what of ['list pods', 'get pods', 'watch pods']) {
      server.faults.set(what, { status: 401, body: status(401, 'Unauthorized', 'Unauthorized') });
    }
    expect(await look()).toMatchObject({ level: 'fail', advice: expect.stringContaining('credentials') });
  });

  test('that is away, or never answers, is told within the time given', async () => {
    server.faults.set('list namespaces', 'hang');
    expect(await look(100)).toMatchObject({
      level: 'fail',
      found: expect.stringContaining('list namespaces: no answer within 100 ms'),
    });
    await server.kill();
    expect(await look()).toMatchObject({ level: 'fail', found: expect.stringContaining('ECONNREFUSED') });
  });

  test('cannot be found by a kubeconfig that is not there, or by a token that cannot be read', async () => {
    server.writeKubeconfig(kubeconfig, { cluster: { 'certificate-authority': join(folder, 'ca.crt') } });
    expect(await look()).toMatchObject({
      level: 'fail',
      found: expect.stringContaining(`${join(folder, 'ca.crt')} cannot be read`),
    });
    rmSync(kubeconfig);
    expect(await look()).toMatchObject({
      level: 'fail',
      found: expect.stringMatching(/^sources\.kubernetes\.kubeconfig: .*ENOENT/),
    });
  });
});

describe('the CNI plugin', () => {
  const CONFLIST = '10-calico.conflist';
  let node: CniNode;
  let socket: string;
  let agent: Server | undefined;
  let open: Set<Socket>;

  beforeEach(() => {
    node = new CniNode();
    agent = undefined;
    open = new Set();
    socket = join(node.root, 'cni.sock');
    node.write(CONFLIST, CALICO);
  });
  afterEach(async () => {
    await stop();
    node.close();
  });

  async function stop(): Promise<void> {
    for (const connection of open) {
      connection.destroy();
    }
    await new Promise<void>((resolve) => (agent ? agent.close(() => resolve()) : resolve()));
  }

  /** A stand-in for the agent, which says this to every STATUS; undefined: it says nothing. */
  async function answer(text: string | undefined): Promise<void> {
    agent = createServer({ allowHalfOpen: true }, (connection) => {
      open.add(connection);
      connection.on('error', () => undefined);
      connection.resume().once('end', () => (text === undefined ? undefined : connection.end(text)));
    });
    await new Promise<void>((resolve) => agent?.listen(socket, resolve));
  }

  const installed = (more: object = {}) => install({ ...node.options, socket, ...more });

  async function look(more: { install?: boolean; failure?: 'closed' | 'open'; plugin?: string } = {}) {
    const { confDir, binDir, stateDir } = node;
    const { plugin = PLUGIN, install: keep = false, failure = 'closed' } = more;
    const cni = { install: keep, confDir, binDir, stateDir, failure, timeoutMs: 10_000 };
    const results = await runChecks(cniChecks(cni, { socket, plugin }));
    expect(results.map(({ name }) => name)).toEqual(['CNI chain', 'CNI plugin', 'CNI socket']);
    expect(results.filter(({ status: level, advice }) => (level === 'ok') !== (advice === ''))).toEqual([]);
    const [chain, plugged, asked] = results.map(({ status: level, found }) => `${level} ${found}`);
    return { chain, plugin: plugged, socket: asked, advice: results[0]?.advice };
  }

  test('is not looked for where it is no source', () => {
    expect(cniChecks(undefined, { socket, plugin: PLUGIN })).toEqual([]);
  });

  test('that is in place, with an agent that is ready, is ok', async () => {
    installed();
    await answer('{"ok":true}');
    expect(await look()).toEqual({
      chain: `ok ${node.path(CONFLIST)} ends in nodesentry-cni`,
      plugin: `ok ${join(node.binDir, 'nodesentry-cni')}`,
      socket: `ok the agent at ${socket} is ready`,
      advice: '',
    });
  });

  test('that is not installed yet is a warning that says who does it', async () => {
    const byHand = await look();
    expect(byHand).toMatchObject({
      chain: `warn ${node.path(CONFLIST)}: nodesentry-cni is not in the chain: first packets of new pods escape`,
      plugin: `warn ${join(node.binDir, 'nodesentry-cni')} does not exist`,
      socket: expect.stringMatching(/^warn no agent answers at .*ENOENT/),
      advice: 'run "nodesentry cni install"',
    });
    expect((await look({ install: true })).advice).toMatch(/^start the agent, which installs it/);
    rmSync(node.path(CONFLIST));
    node.write('10-lonely.conf', PLAIN);
    expect((await look()).chain).toMatch(/^warn .*10-lonely\.conf: nodesentry-cni is not in the chain/);
  });

  test('in a chain of Cilium is told what to set there first', async () => {
    node.write(CONFLIST, CILIUM);
    expect((await look()).advice).toBe(
      'set Cilium\'s cni.exclusive to false (Helm; cni-exclusive in its config map), then run "nodesentry cni install"',
    );
  });

  test('in a chain of a version that it does not speak is told', async () => {
    for (const version of ['0.2.0', '0.3.0', '2.0.0']) {
      node.write(CONFLIST, CALICO.replace('"1.0.0"', `"${version}"`));
      expect((await look()).chain).toMatch(
        new RegExp(
          `^fail .*: cniVersion: "${version}", but nodesentry-cni speaks 0.3.1, 0.4.0, 1.0.0, 1.1.0`,
        ),
      );
    }
    node.write(CONFLIST, CALICO.replace('"1.0.0"', '"0.3.1"'));
    expect((await look()).chain).toMatch(/^warn .* is not in the chain/);
  });

  test('in a folder that is empty, or with a file that is no JSON, is told', async () => {
    node.write(CONFLIST, '{"plugins": [');
    expect((await look()).chain).toMatch(/^fail .*10-calico\.conflist: not JSON/);
    rmSync(node.path(CONFLIST));
    expect((await look()).chain).toBe(`fail ${node.confDir} has no network configuration`);
  });

  test('that asks at another socket than the agent has is a failure', async () => {
    installed({ socket: '/run/elsewhere/cni.sock' });
    expect((await look()).chain).toBe(
      `fail ${node.path(CONFLIST)}: nodesentry-cni.socket is "/run/elsewhere/cni.sock", but the agent listens at ${socket}`,
    );
  });

  test('that stands there with other settings is a warning', async () => {
    installed({ timeoutMs: 1 });
    expect((await look()).chain).toMatch(/^warn .* stands there otherwise than configured$/);
  });

  test('that the chain names and nobody finds is a failure, as is one that cannot be run', async () => {
    installed();
    const path = join(node.binDir, 'nodesentry-cni');
    chmodSync(path, 0o644);
    expect((await look()).plugin).toBe(`fail ${path} is not executable`);
    rmSync(path);
    expect((await look()).plugin).toBe(`fail ${path} does not exist, but is in the chain: no pod can start`);
  });

  test('of another version is a warning', async () => {
    mkdirSync(node.binDir);
    const path = join(node.binDir, 'nodesentry-cni');
    copyFileSync(PLUGIN, path);
    writeFileSync(path, 'older', { flag: 'a' });
    expect((await look()).plugin).toBe(`warn ${path} is not the one of this version`);
    expect((await look({ plugin: join(node.root, 'none') })).plugin).toMatch(/is not built/);
  });

  test('whose agent is away keeps pods from starting where the policy is closed', async () => {
    installed();
    expect((await look()).socket).toMatch(
      /^fail no agent answers .*no pod starts that is enrolled, or may be \(failure: closed\)$/,
    );
    installed({ failure: 'open' });
    expect((await look({ failure: 'open' })).socket).toMatch(/^warn no agent answers/);
  });

  test('whose agent is not ready tells why', async () => {
    await answer(
      '{"ok":false,"code":50,"msg":"the agent is not ready: source cri has not synced","retry":true}',
    );
    expect((await look()).socket).toBe(`warn ${socket}: the agent is not ready: source cri has not synced`);
  });

  test.each(['', 'null', 'hello', '[]', '{"ok":1}'])('whose agent answers %j is told', async (text) => {
    await answer(text);
    expect((await look()).socket).toBe(`warn ${socket}: an answer that makes no sense: ${text}`);
  });

  test('whose agent never answers is told within 2 s', async () => {
    await answer(undefined);
    expect((await look()).socket).toMatch(/^warn no agent answers at .*: no answer within 2 s$/);
  });
});
