/**
 * Records what kube-proxy writes: the real one against a real API server, in a network namespace of its own.
 * Called by `record` beside this file.
 */

import { existsSync, mkdirSync, mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { ControlPlane } from '../../k8s/control-plane.js';
import { Cleanup, Daemon, inNetns, run, runIn, script, waitFor } from '../exec.js';
import { NODE_PORT, RECORDED, withPlaceholders } from './placeholders.js';

type Recording = readonly [file: string, command: string, ...words: string[]];

/** What a mode consists of, in the order in which it can be loaded. */
const RECORDINGS: Readonly<Record<string, readonly Recording[]>> = {
  iptables: [
    ['iptables', 'iptables-save'],
    ['ip6tables', 'ip6tables-save'],
  ],
  nftables: [
    ['ip.nft', 'nft', 'list', 'table', 'ip', 'kube-proxy'],
    ['ip6.nft', 'nft', 'list', 'table', 'ip6', 'kube-proxy'],
  ],
  ipvs: [
    ['ipset', 'ipset', 'save'],
    ['addresses', 'sh', '-c', "ip -o addr show dev kube-ipvs0 | awk '{print $4}'"],
    ['ipvsadm', 'ipvsadm', '--save', '--numeric'],
    ['iptables', 'iptables-save'],
    ['ip6tables', 'ip6tables-save'],
  ],
};

const FAMILIES = [4, 6] as const;
const SERVICES = [RECORDED.WEB, RECORDED.OUTSIDE, RECORDED.STICKY];
/** So many looks in a row that see the same. */
const STEADY = 4;
const NETNS = `kube-proxy-${process.pid}`;

/** A service without a selector, and its endpoints. */
async function createService(plane: ControlPlane, name: string, ips: { 4: string; 6: string }, spec: object) {
  await plane.call('POST', '/api/v1/namespaces/default/services', {
    metadata: { name },
    spec: {
      ipFamilyPolicy: 'RequireDualStack',
      clusterIP: ips[4],
      clusterIPs: [ips[4], ips[6]],
      ports: [{ name: 'http', port: 80, targetPort: 80, ...(name === 'outside' && { nodePort: NODE_PORT }) }],
      ...spec,
    },
  });
  for (const family of FAMILIES) {
    await plane.call('POST', '/apis/discovery.k8s.io/v1/namespaces/default/endpointslices', {
      metadata: { name: `${name}-ipv${family}`, labels: { 'kubernetes.io/service-name': name } },
      addressType: `IPv${family}`,
      ports: [{ name: 'http', port: 80, protocol: 'TCP' }],
      endpoints: [RECORDED.FIRST, RECORDED.SECOND].map((ip) => ({
        addresses: [ip[family]],
        conditions: { ready: true },
      })),
    });
  }
}

/** The node, its services, and the kubeconfig of kube-proxy's own account. */
async function createCluster(directory: string, cleanup: Cleanup): Promise<string> {
  const plane = await ControlPlane.start({
    directory,
    cleanup,
    netns: NETNS,
    serviceRanges: `${RECORDED.SERVICES[4]},${RECORDED.SERVICES[6]}`,
  });
  const node = await plane.call('POST', '/api/v1/nodes', { metadata: { name: 'node-a' } });
  await plane.call(
    'PATCH',
    `/api/v1/nodes/${node.metadata.name}/status`,
    {
      status: {
        addresses: FAMILIES.map((family) => ({ type: 'InternalIP', address: RECORDED.NODE[family] })),
      },
    },
    'application/merge-patch+json',
  );
  await createService(plane, 'web', RECORDED.WEB, {});
  await createService(plane, 'outside', RECORDED.OUTSIDE, { type: 'NodePort' });
  await createService(plane, 'sticky', RECORDED.STICKY, { sessionAffinity: 'ClientIP' });
  const account = { namespace: 'kube-system', name: 'kube-proxy' };
  await plane.createServiceAccount(account.namespace, account.name);
  await plane.call('POST', '/apis/rbac.authorization.k8s.io/v1/clusterrolebindings', {
    metadata: { name: 'kube-proxy' },
    roleRef: { apiGroup: 'rbac.authorization.k8s.io', kind: 'ClusterRole', name: 'system:node-proxier' },
    subjects: [{ kind: 'ServiceAccount', ...account }],
  });
  const kubeconfig = join(directory, 'kube-proxy.kubeconfig');
  await plane.writeKubeconfig(kubeconfig, account);
  return kubeconfig;
}

async function sysctls(): Promise<Set<string>> {
  const all = await runIn(NETNS, 'sh', ['-c', 'sysctl -a 2>/dev/null']);
  // Those of single interfaces follow from `all` and `default`.
  const isSetting = (line: string) =>
    /^net\./.test(line) && !/^net\.ipv\d\.(?:conf|neigh)\.(?!all\.|default\.)|nf_conntrack_count/.test(line);
  return new Set(all.split('\n').filter(isSetting));
}

/** What the commands print once every service is there and nothing changes any more. */
async function settled(recordings: readonly Recording[], daemon: Daemon): Promise<string[]> {
  const seen: string[][] = [];
  return waitFor(
    'kube-proxy to have written the services',
    async () => {
      if (!daemon.running) {
        throw new Error(daemon.log().slice(-3_000));
      }
      const texts: string[] = [];
      for (const [, command, ...words] of recordings) {
        const text = await runIn(NETNS, command, words).catch(() => '');
        texts.push(text.replace(/^# .*\n/gm, '').replace(/ initval \w+/g, ''));
      }
      seen.push(texts);
      const all = texts.join('');
      const isWhole = FAMILIES.every((family) =>
        [...SERVICES, RECORDED.FIRST, RECORDED.SECOND].every((ip) => all.includes(ip[family])),
      );
      const isSteady = seen.slice(-STEADY).every((earlier) => earlier.join('') === all);
      return isWhole && seen.length >= STEADY && isSteady && texts;
    },
    120_000,
    2_000,
  );
}

async function record(mode: string, binary: string): Promise<void> {
  const recordings = RECORDINGS[mode];
  if (recordings === undefined) {
    throw new Error(`kube-proxy's modes are ${Object.keys(RECORDINGS).join(', ')}, not ${mode}`);
  }
  const directory = mkdtempSync(join(tmpdir(), 'nodesentry-kube-proxy-'));
  const cleanup = new Cleanup();
  cleanup.add('folder', () => rmSync(directory, { recursive: true }));
  try {
    await run('ip', ['netns', 'add', NETNS]);
    cleanup.add('netns', () => run('ip', ['netns', 'del', NETNS]));
    await script(
      NETNS,
      `ip link set lo up
       ip link add uplink type veth peer name wire
       ip addr add ${RECORDED.NODE[4]}/24 dev uplink
       ip addr add ${RECORDED.NODE[6]}/64 dev uplink nodad
       ip link set uplink up
       ip link set wire up`,
    );
    const kubeconfig = await createCluster(directory, cleanup);
    const before = await sysctls();
    const words = [
      ...['--kubeconfig', kubeconfig, '--proxy-mode', mode, '--hostname-override', 'node-a', '--v', '2'],
      ...[
        '--cluster-cidr',
        `${RECORDED.PODS[4]},${RECORDED.PODS[6]}`,
        '--healthz-bind-address',
        '127.0.0.1:10256',
      ],
      // That is the whole machine's, and not a namespace's to set.
      ...['--conntrack-max-per-core', '0'],
    ];
    const daemon = new Daemon(
      'kube-proxy',
      join(directory, 'kube-proxy.log'),
      ...inNetns(NETNS, binary, words),
    );
    cleanup.add('kube-proxy', () => daemon.stop('SIGKILL'));
    const texts = await settled(recordings, daemon);
    const folder = join(import.meta.dirname, mode);
    rmSync(folder, { recursive: true, force: true });
    mkdirSync(folder);
    for (const [index, [file]] of recordings.entries()) {
      writeFileSync(join(folder, file), withPlaceholders(texts[index] ?? ''));
    }
    const changed = [...(await sysctls())].filter((line) => !before.has(line));
    writeFileSync(join(folder, 'sysctl.conf'), changed.map((line) => `${line}\n`).join(''));
    process.stdout.write(`kube-proxy: recorded ${mode} in ${folder}\n`);
  } finally {
    await cleanup.run();
  }
}

const [binary, ...modes] = process.argv.slice(2);
if (binary === undefined || !existsSync(binary)) {
  throw new Error('the first word is the path of kube-proxy');
}
for (const mode of modes) {
  await record(mode, binary);
}
