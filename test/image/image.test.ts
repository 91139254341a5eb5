/**
 * The image is built, and started as the DaemonSet says: by a real containerd over CRI, with the manifest's own
 * capabilities, mounts, seccomp profile and read-only root. Only the paths on the node are the lab's.
 */

import { mkdirSync, readdirSync, readFileSync, statSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import { parse, stringify } from 'yaml';
import { ApiClient } from '../../src/api/client.js';
import type { WorkloadMessage } from '../../src/api/messages.js';
import { CAPABILITIES } from '../../src/kernel/capabilities.js';
import { attachedOn } from '../lab/attached.js';
import { Capture, POD_TCP } from '../lab/capture.js';
import { Containerd } from '../lab/containerd.js';
import { inNetns, run, runIn, waitFor } from '../lab/exec.js';
import { Lab, REMOTE } from '../lab/lab.js';
import { pinnedIds, stillThere } from '../lab/pinned.js';
import { type LabPod, reply } from '../lab/pod.js';
import { Kubelet, type NodePod } from './kubelet.js';
import { type Container, kustomize, only, type PodSpec, podSpec, ROOT } from './manifests.js';

const ARCHIVE = join(ROOT, 'build/nodesentry-image.tar');
/** Of a process that is not root and has no capability, as a proxy should be. */
const PROXY_UID = 1337;

let lab: Lab;
let containerd: Containerd;
let kubelet: Kubelet;
let agentSpec: PodSpec;
let agent: NodePod;
let proxy: NodePod;
let web: LabPod;
let client: ApiClient;
let before: Record<string, string>;
let podInterface: string | undefined;
let uplink: Capture;
let later: LabPod | undefined;

function onlyContainer(spec: PodSpec): Container {
  const [container] = spec.containers;
  if (container === undefined || spec.containers.length !== 1) {
    throw new Error('the agent pod has one container');
  }
  return container;
}

/** The reference proxy as a user would deploy it: the same image, a uid of its own, no capability at all. */
function proxySpec(): PodSpec {
  return {
    hostNetwork: true,
    containers: [
      {
        name: 'proxy',
        image: onlyContainer(agentSpec).image,
        args: ['proxy', '--outbound', '127.0.0.1:15001', '--outbound6', '[::1]:15001'],
        securityContext: {
          runAsUser: PROXY_UID,
          runAsGroup: PROXY_UID,
          readOnlyRootFilesystem: true,
          allowPrivilegeEscalation: false,
          seccompProfile: { type: 'RuntimeDefault' },
          capabilities: { drop: ['ALL'] },
        },
        volumeMounts: [{ name: 'run', mountPath: '/run/nodesentry' }],
      },
    ],
    volumes: [{ name: 'run', hostPath: { path: '/run/nodesentry', type: 'Directory' } }],
  };
}

/** A folder of the lab in place of one of the node, shared as a kubelet's node has it. */
function hostPath(path: string): string {
  const places: Readonly<Record<string, string>> = {
    '/run/netns': '/run/netns',
    '/proc/sys/net': '/proc/sys/net',
    '/run/containerd': join(lab.directory, 'containerd-ptp'),
    '/etc/cni/net.d': join(lab.directory, 'cni-ptp'),
  };
  const place = places[path] ?? join(lab.directory, 'node', path);
  mkdirSync(place, { recursive: true });
  return place;
}

async function prepareNode(): Promise<void> {
  await run('mount', ['--bind', lab.directory, lab.directory]);
  lab.cleanup.add('mount of the lab folder', () => run('umount', ['-l', lab.directory]));
  await run('mount', ['--make-rshared', lab.directory]);
  const bpffs = hostPath('/sys/fs/bpf');
  await run('mount', ['-t', 'bpf', 'bpf', bpffs]);
  lab.cleanup.add('bpffs', () => run('umount', [bpffs]));
  // WireGuard and some clouds set it: the agent then has to write a sysctl of every pod interface.
  await runIn(lab.node, 'sysctl', ['-qw', 'net.ipv4.conf.all.src_valid_mark=1']);
}

/**
 * The base's own file, with what this lab has not (an API server, which would know the pods' service accounts) and has in
 * addition (a proxy that is not root).
 */
function writeConfig(text: string): string {
  const config = parse(text) as {
    sources: { cri: Record<string, unknown>; kubernetes?: unknown };
    instances: { owner: object }[];
    api: { allow: object[] };
  };
  delete config.sources.kubernetes;
  config.sources.cri.serviceAccount = 'default';
  config.api.allow.push({ uid: PROXY_UID });
  for (const instance of config.instances) {
    instance.owner = { uid: PROXY_UID };
  }
  const folder = join(lab.directory, 'config');
  mkdirSync(folder, { recursive: true });
  writeFileSync(join(folder, 'config.yaml'), stringify(config));
  return folder;
}

async function acceptLocal(): Promise<string> {
  return (await runIn(lab.node, 'sysctl', ['-n', `net.ipv4.conf.${podInterface}.accept_local`])).trim();
}

function probe(container: Container, kind: 'startupProbe' | 'livenessProbe' | 'readinessProbe') {
  const wanted = container[kind];
  if (wanted === undefined) {
    throw new Error(`there is no ${kind}`);
  }
  return agent.exec(wanted.exec.command, wanted.timeoutSeconds * 1000);
}

async function startAgent(name: string): Promise<void> {
  agent = await kubelet.start(name, agentSpec);
  try {
    await waitFor(
      'the readiness probe to pass',
      async () => (await probe(onlyContainer(agentSpec), 'readinessProbe')).code === 0,
      60_000,
      200,
    );
  } catch (error) {
    throw new Error(`${String(error)}\n${agent.log().slice(-4000)}`);
  }
}

async function intercepted(name: string): Promise<WorkloadMessage['interception']> {
  try {
    return await waitFor(
      `${name} to be INTERCEPTED`,
      async () => {
        const { workloads } = await client.workloads();
        const found = workloads.find(({ podName }) => podName === name);
        return found?.interception.state === 'INTERCEPTED' ? found.interception : undefined;
      },
      60_000,
    );
  } catch (error) {
    throw new Error(`${String(error)}\n${agent.log().slice(-4000)}`);
  }
}

/** By their folders. */
function lockedPackages(): Readonly<Record<string, { readonly dev?: boolean }>> {
  const { packages } = JSON.parse(readFileSync(join(ROOT, 'package-lock.json'), 'utf8')) as {
    packages: Record<string, { dev?: boolean }>;
  };
  return packages;
}

/** What an agent could have left behind in the node. */
async function nodeState(): Promise<Record<string, string>> {
  const show = (command: string, ...args: string[]) => runIn(lab.node, command, args);
  return {
    rules4: await show('ip', 'rule'),
    rules6: await show('ip', '-6', 'rule'),
    routes4: await show('ip', 'route', 'show', 'table', 'all'),
    routes6: await show('ip', '-6', 'route', 'show', 'table', 'all'),
    qdiscs: await show('tc', 'qdisc', 'show'),
    nftables: await show('nft', 'list', 'ruleset'),
    attached: JSON.stringify(await attachedOn(lab)),
    pins: readdirSync(hostPath('/sys/fs/bpf')).join(' '),
    acceptLocal: await show('sysctl', '-ar', '^net\\.ipv4\\.conf\\..*accept_local'),
  };
}

/** Pieces of it that other pods do not change. */
const OURS_ALONE = ['rules4', 'rules6', 'nftables', 'attached', 'pins'] as const;

async function escaped(): Promise<string[]> {
  return uplink.flows();
}

/** The proxy logs a flow after it has answered it, and containerd writes the log in its own time. */
function flowFrom(peer: string): Promise<Record<string, unknown>> {
  return waitFor(
    `the proxy to log ${peer}`,
    () =>
      proxy
        .log()
        .split('\n')
        .filter((line) => line.includes('"originalDst"'))
        .map((line) => JSON.parse(line) as Record<string, unknown>)
        .find((flow) => flow.peer === peer),
    5_000,
  );
}

/** The pod gets an answer, the proxy had its connection, and the server did not see the pod. */
async function expectThroughProxy(family: 4 | 6): Promise<void> {
  const dialled = reply(await web.app(['dial', REMOTE[family], '80']));
  expect(dialled, proxy.log().slice(-2000)).toMatchObject({ ok: true });
  expect(JSON.stringify(dialled.server)).not.toContain(web.ips[family]);
  const bracket = (ip: string) => (family === 6 ? `[${ip}]` : ip);
  expect(await flowFrom(`${bracket(web.ips[family])}:${dialled.localPort}`)).toMatchObject({
    originalDst: `${bracket(REMOTE[family])}:80`,
    workload: 'default/web',
    assurance: 'DATAPATH_RECORDED',
  });
}

beforeAll(async () => {
  await run(join(ROOT, 'scripts/build-image'), [], { timeoutMs: 900_000 });
  const manifests = await kustomize('base');
  agentSpec = podSpec(manifests);
  lab = await Lab.create();
  await prepareNode();
  await lab.serve();
  containerd = await Containerd.start(lab, 'ptp');
  await run('ctr', ['-a', containerd.socket, '-n', 'k8s.io', 'images', 'import', ARCHIVE]);
  const config = writeConfig(only(manifests, 'ConfigMap').data?.['config.yaml'] ?? '');
  kubelet = new Kubelet({ lab, containerd, nodeName: 'node-a', hostPath, configMap: () => config });
  lab.cleanup.add('what the agent left', async () => {
    await run(
      ...inNetns(lab.node, join(ROOT, 'bin/nodesentry'), [
        'cleanup',
        '--run-dir',
        hostPath('/run/nodesentry'),
        '--bpffs',
        join(hostPath('/sys/fs/bpf'), 'nodesentry'),
        '--config',
        join(config, 'config.yaml'),
        '--cni-conf-dir',
        hostPath('/etc/cni/net.d'),
        '--cni-bin-dir',
        hostPath('/opt/cni/bin'),
        '--cni-state-dir',
        hostPath('/var/lib/nodesentry'),
      ]),
    );
  });
  web = await containerd.runPod({
    name: 'web',
    runtime: 'runc',
    labels: { app: 'web', 'nodesentry.io/intercept': 'enabled' },
  });
  before = await nodeState();
  client = new ApiClient({ runDir: hostPath('/run/nodesentry') });
  lab.cleanup.add('API client', () => client.close());
  await startAgent('nodesentry-1');
  proxy = await kubelet.start('proxy', proxySpec());
  uplink = await Capture.start(lab, lab.node, 'uplink', POD_TCP);
}, 900_000);

afterAll(async () => {
  await lab?.close();
});

describe('the image', () => {
  it('is under 100 MB', () => {
    expect(statSync(ARCHIVE).size).toBeLessThan(100e6);
  });

  it('has no compiler in it, no header but ours, no npm, and none of the packages that only the build needs', async () => {
    /** Each of them that is a command. */
    const commands = async (names: readonly string[]): Promise<string[]> => {
      const words = ['sh', '-c', `for name in ${names.join(' ')}; do command -v $name; done; true`];
      const { code, stdout, stderr } = await agent.exec(words);
      expect([code, stderr]).toEqual([0, '']);
      return stdout.split('\n').filter((line) => line !== '');
    };
    /** Each that matches a file. */
    const files = async (patterns: readonly string[]): Promise<string[]> => {
      const words = [
        'sh',
        '-c',
        `for file in ${patterns.join(' ')}; do ! test -e "$file" || echo "$file"; done`,
      ];
      const { code, stdout, stderr } = await agent.exec(words);
      expect([code, stderr]).toEqual([0, '']);
      return stdout.split('\n').filter((line) => line !== '');
    };
    const ofBuild = (isDev: boolean) =>
      Object.entries(lockedPackages())
        .filter(([path, { dev = false }]) => path !== '' && dev === isDev)
        .map(([path]) => `/opt/nodesentry/${path}`);
    // Both ways of looking find what is there.
    expect(await commands(['node', 'nft', 'nodesentry'])).toHaveLength(3);
    expect(await files(['/opt/nodesentry/build/*', ...ofBuild(false)])).toEqual(
      expect.arrayContaining(['/opt/nodesentry/build/Release', '/opt/nodesentry/node_modules/commander']),
    );

    expect(
      await commands([
        ...['cc', 'gcc', 'cpp', 'c++', 'g++', 'clang', 'clang-14', 'as', 'ld', 'ar', 'llc', 'llvm-strip'],
        ...['make', 'cmake', 'ninja', 'pkg-config', 'python3', 'go', 'bpftool'],
        ...['npm', 'npx', 'corepack', 'tsc', 'cmake-js'],
      ]),
    ).toEqual([]);
    // What proxies are compiled with, and its page of the manual.
    expect(
      await files(['/usr/local/include/nodesentry.h', '/usr/local/share/man/man7/nodesentry.7']),
    ).toHaveLength(2);
    expect(ofBuild(true).length).toBeGreaterThan(10);
    expect(
      await files([
        ...ofBuild(true),
        ...[
          '/usr/local/lib/node_modules',
          '/usr/local/include/[!n]*', // the one is nodesentry.h
          '/usr/include/*',
          '/usr/lib/gcc',
          '/usr/lib/llvm*',
        ],
        ...['src', 'bpf', 'native', 'scripts', 'CMakeLists.txt', 'tsconfig.json', 'build/CMakeFiles'].map(
          (name) => `/opt/nodesentry/${name}`,
        ),
        ...['/root/.npmrc', '/root/.npm'],
      ]),
    ).toEqual([]);
  });

  it('has the Node that is pinned, not that of the machine that built it, with its licence', async () => {
    const folder = (await run(join(ROOT, 'scripts/install-node'), [])).trim();
    const version = await run(join(folder, 'bin/node'), ['--version']);
    expect(await agent.exec(['node', '--version'])).toMatchObject({ stdout: version, code: 0 });
    const licence = await agent.exec(['cat', '/usr/share/doc/nodejs/copyright']);
    expect(licence.stdout).toBe(readFileSync(join(folder, 'LICENSE'), 'utf8'));
  });

  it('accepts the configuration of the config map', async () => {
    const checked = await agent.exec(['nodesentry', 'config', 'check']);
    expect(checked).toMatchObject({ code: 0, stdout: '/etc/nodesentry/config.yaml: ok\n' });
  });
});

describe('the agent of the DaemonSet', () => {
  it('has the capabilities of the manifest, seccomp, and nothing else', async () => {
    const pid = await agent.pid();
    const status = readFileSync(`/proc/${pid}/status`, 'utf8');
    const bits = CAPABILITIES.reduce((set, { bit }) => set | (1n << BigInt(bit)), 0n);
    const hex = bits.toString(16).padStart(16, '0');
    expect(/^CapEff:\t(\w+)$/m.exec(status)?.[1]).toBe(hex);
    expect(/^CapPrm:\t(\w+)$/m.exec(status)?.[1]).toBe(hex);
    expect(/^CapBnd:\t(\w+)$/m.exec(status)?.[1]).toBe(hex);
    expect(/^CapAmb:\t(\w+)$/m.exec(status)?.[1]).toBe('0'.repeat(16));
    expect(status).toMatch(/^NoNewPrivs:\t1$/m);
    expect(status).toMatch(/^Seccomp:\t2$/m);
    expect(status).toMatch(/^Uid:\t0\t0\t0\t0$/m);
  });

  it('does not start as another user: Kubernetes gives such a process none of the capabilities it lists', async () => {
    const container = onlyContainer(agentSpec);
    const securityContext = { ...container.securityContext, runAsUser: PROXY_UID, runAsGroup: PROXY_UID };
    const other = await kubelet.start('nodesentry-other', {
      ...agentSpec,
      containers: [{ ...container, securityContext }],
    });
    expect(await other.exitCode()).toBe(1);
    expect(other.log()).toContain('missing CAP_DAC_READ_SEARCH, CAP_NET_ADMIN');
    await other.stop();
  });

  it('cannot write its own root file system', async () => {
    const refused = await agent.exec(['sh', '-c', 'touch /opt/nodesentry/x /etc/x /x']);
    expect(refused.code).not.toBe(0);
    expect(refused.stderr.match(/Read-only file system/g)).toHaveLength(3);
  });

  it('passes every probe of the manifest', async () => {
    for (const kind of ['startupProbe', 'livenessProbe', 'readinessProbe'] as const) {
      expect(await probe(onlyContainer(agentSpec), kind), kind).toMatchObject({ code: 0, stderr: '' });
    }
  });

  it('bears the name that the downward API gave it', async () => {
    expect(await client.status()).toMatchObject({ node: 'node-a', ready: true });
  });

  it('intercepts a pod for a proxy of the same image that is neither root nor capable of anything', async () => {
    await intercepted('web');
    try {
      await waitFor(
        'both listeners to be adopted',
        async () => (await client.status()).listeners.filter(({ adopted }) => adopted).length === 2,
        20_000,
      );
    } catch (error) {
      throw new Error(`${String(error)}\n${agent.log().slice(-3000)}\n${proxy.log().slice(-1000)}`);
    }
    for (const family of [4, 6] as const) {
      await expectThroughProxy(family);
    }
    expect(await escaped()).toEqual([]);
  });

  it('writes the one sysctl that it needs, though /proc/sys is read-only in its container', async () => {
    podInterface = (await intercepted('web')).interface;
    expect(await acceptLocal()).toBe('1');
  });
});

describe('a rolling update', () => {
  it('leaves the datapath in place between the old agent and the new one', async () => {
    await agent.stop();
    const between = await nodeState();
    for (const piece of OURS_ALONE) {
      expect(between[piece], piece).not.toBe(before[piece]);
    }
    // It still reaches the proxy, which can ask nobody and so resets it.
    expect(reply(await web.app(['dial', REMOTE[4], '80'], 30_000))).toMatchObject({ ok: false });
    expect(await escaped()).toEqual([]);
    await startAgent('nodesentry-2');
    expect(agent.log()).toContain('"takenOver":true');
    await intercepted('web');
    await expectThroughProxy(4);
    expect(await escaped()).toEqual([]);
  });

  it('sees pods that start after a restart of containerd, by its new socket', async () => {
    await containerd.restart();
    later = await containerd.runPod({
      name: 'later',
      runtime: 'runc',
      labels: { app: 'web', 'nodesentry.io/intercept': 'enabled' },
    });
    await intercepted('later');
  });
});

describe('uninstalling', () => {
  it('is refused as long as an agent runs on the node', async () => {
    const spec = podSpec(await kustomize('cleanup'));
    await expect(kubelet.start('cleanup-early', spec)).rejects.toThrow(/is running: stop it first/);
  });

  it('leaves nothing of ours in the kernel, and the pod goes on under its own address', async () => {
    await later?.stop();
    const ids = await pinnedIds(join(hostPath('/sys/fs/bpf'), 'nodesentry/v1'));
    expect(await stillThere(ids)).toHaveLength(ids.prog.size + ids.map.size + ids.link.size);
    for (const kind of ['prog', 'map', 'link'] as const) {
      expect(ids[kind].size, kind).toBeGreaterThan(0);
    }
    await agent.stop();
    await proxy.stop();
    const done = await kubelet.start('cleanup', podSpec(await kustomize('cleanup')));
    // The kernel frees programs and maps a moment after their last reference.
    await waitFor('all of it to be freed', async () => (await stillThere(ids)).length === 0, 5_000).catch(
      () => undefined,
    );
    expect(await stillThere(ids)).toEqual([]);
    expect(await nodeState()).toEqual(before);
    for (const family of [4, 6] as const) {
      const dialled = reply(await web.app(['dial', REMOTE[family], '80']));
      expect(dialled).toMatchObject({ ok: true });
      expect(JSON.stringify(dialled.server)).toContain(web.ips[family]);
    }
    expect(await escaped()).not.toEqual([]);
    await done.stop();
  });
});
