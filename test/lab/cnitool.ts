/** libcni as a runtime uses it, by its own cnitool, with Go plugins of CNI 1.1.0: Debian's end at 1.0.0. */

import { mkdirSync, symlinkSync } from 'node:fs';
import { join } from 'node:path';
import { inNetns, type Output, tryRun } from './exec.js';

/** Of scripts/install-go-tools. */
const GO_TOOLS = join(import.meta.dirname, '../../.cache/bin');

export interface Libcni {
  readonly confDir: string;
  readonly binDir: string;
  /** Namespace that stands for the node, below /run/netns. */
  readonly node: string;
  /** Name of the network in the conflist. */
  readonly network: string;
}

export interface LibcniPod {
  /** Below /run/netns. */
  readonly netns: string;
  readonly uid: string;
  readonly namespace: string;
  readonly name: string;
  readonly annotations: Readonly<Record<string, string>>;
}

/** `folder`: where the configuration and the plugins are to stand. */
export function prepareLibcni(folder: string, node: string, network: string): Libcni {
  const [confDir, binDir] = [join(folder, 'net.d'), join(folder, 'bin')];
  mkdirSync(confDir);
  mkdirSync(binDir);
  mkdirSync(join(folder, 'varlib'));
  for (const name of ['ptp', 'host-local']) {
    symlinkSync(join(GO_TOOLS, name), join(binDir, name));
  }
  return { confDir, binDir, node, network };
}

export function primaryPtp(folder: string) {
  return {
    type: 'ptp',
    ipMasq: false,
    mtu: 1400,
    ipam: {
      type: 'host-local',
      dataDir: join(folder, 'ipam'),
      ranges: [[{ subnet: '10.66.9.0/24' }], [{ subnet: 'fd00:66:9::/64' }]],
      routes: [{ dst: '0.0.0.0/0' }, { dst: '::/0' }],
    },
    dns: { nameservers: ['10.96.0.10'], search: ['svc.local'] },
  };
}

/** `add`, `check`, `del`, `status`, `gc`. libcni keeps its results below /var/lib/cni: it is given a folder of its own there. */
export function cnitool(
  { confDir, binDir, node, network }: Libcni,
  command: string,
  { netns, uid, namespace, name, annotations }: LibcniPod,
): Promise<Output> {
  const script = `mount --bind '${join(confDir, '../varlib')}' /var/lib && exec "$@"`;
  const inner = inNetns(node, join(GO_TOOLS, 'cnitool'), [command, network, `/run/netns/${netns}`]);
  return tryRun('unshare', ['-m', 'sh', '-c', script, 'sh', inner[0], ...inner[1]], {
    env: {
      CNI_PATH: binDir,
      NETCONFPATH: confDir,
      CNI_ARGS: `IgnoreUnknown=1;K8S_POD_NAME=${name};K8S_POD_NAMESPACE=${namespace};K8S_POD_UID=${uid}`,
      CAP_ARGS: JSON.stringify({ 'io.kubernetes.cri.pod-annotations': annotations }),
    },
  });
}
