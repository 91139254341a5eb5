/**
 * A whole Kubernetes of one node: etcd, API server, controller manager and scheduler on the lab's remote, and a node with
 * containerd 2, kubelet and kube-proxy, dual-stack, with runc and gVisor. Its images come from archives; no registry is asked.
 */

import { mkdtempSync } from 'node:fs';
import { join } from 'node:path';
import { stringify } from 'yaml';
import { buildKubernetes, ControlPlane, type KubeObject } from '../k8s/control-plane.js';
import { Daemon, inNetns, type Output, type RunOptions, run, tryRun, waitFor } from '../lab/exec.js';
import { buildImage, IMAGE } from '../lab/image.js';
import type { Lab } from '../lab/lab.js';
import { Node, type NodeProcess } from './node.js';

const ROOT = join(import.meta.dirname, '../..');
const TOOLS = join(ROOT, '.cache/bin');
const NODE_NAME = 'node';
const [NODE_4, NODE_6] = ['10.199.0.1', 'fd00:199::1'];
const [PLANE_4, PLANE_6] = ['10.199.0.2', 'fd00:199::2'];
const POD_RANGES = '10.66.0.0/16,fd00:66::/32';
const SERVICE_RANGES = '10.96.0.0/16,fd00:96::/108';
const CONTAINERD = '/run/containerd/containerd.sock';
const PARTS = [
  'kube-apiserver',
  'kube-controller-manager',
  'kube-scheduler',
  'kubelet',
  'kube-proxy',
  'kubectl',
];

export type ProxyMode = 'iptables' | 'nftables' | 'ipvs';

export interface ClusterOptions {
  /** Of kube-proxy. Default nftables. */
  readonly proxyMode?: ProxyMode;
}

export type Part = 'containerd' | 'kubelet' | 'kube-proxy';

export class Cluster {
  readonly #lab: Lab;
  readonly #options: ClusterOptions;
  /** Of Kubernetes' programs. */
  readonly #programs: string;
  readonly #running = new Map<Part, NodeProcess>();
  #starts = 0;
  readonly plane: ControlPlane;
  readonly node: Node;
  /** Of the cluster's administrator. */
  readonly kubeconfig: string;

  private constructor(
    lab: Lab,
    options: ClusterOptions,
    parts: Pick<Cluster, 'plane' | 'node' | 'kubeconfig'>,
    programs: string,
  ) {
    this.#lab = lab;
    this.#options = options;
    this.plane = parts.plane;
    this.node = parts.node;
    this.kubeconfig = parts.kubeconfig;
    this.#programs = programs;
  }

  /** Resolves when the node is ready. */
  static async start(lab: Lab, options: ClusterOptions = {}): Promise<Cluster> {
    const programs = await buildKubernetes(...PARTS);
    const plane = await ControlPlane.start({
      directory: join(lab.directory, 'control-plane'),
      cleanup: lab.cleanup,
      netns: lab.remote,
      address: PLANE_4,
      serviceRanges: SERVICE_RANGES,
    });
    const kubeconfig = await plane.writeCertifiedKubeconfig('kubectl', '/O=system:masters/CN=kubectl');
    const node = await Node.start(lab, NODE_NAME);
    const cluster = new Cluster(lab, options, { plane, node, kubeconfig }, programs);
    await cluster.#startManagers();
    await cluster.#prepareNode();
    await cluster.startNode(['containerd', 'kubelet', 'kube-proxy']);
    await cluster.load(await buildImage(mkdtempSync(join(lab.directory, 'image-'))));
    await cluster.ready();
    return cluster;
  }

  async #startManagers(): Promise<void> {
    const { plane } = this;
    const { signingKey, certificate } = plane.authority;
    const manager = 'kube-controller-manager';
    const scheduler = 'kube-scheduler';
    const alone = ['--leader-elect=false', '--authentication-skip-lookup', '--bind-address=127.0.0.1'];
    await this.#onPlane(manager, [
      `--kubeconfig=${await plane.writeCertifiedKubeconfig(manager, `/CN=system:${manager}`)}`,
      `--service-account-private-key-file=${signingKey}`,
      `--root-ca-file=${certificate}`,
      '--use-service-account-credentials',
      // Of a node that is away, pods are evicted after seconds, not minutes.
      '--node-monitor-grace-period=20s',
      ...alone,
    ]);
    await this.#onPlane(scheduler, [
      `--kubeconfig=${await plane.writeCertifiedKubeconfig(scheduler, `/CN=system:${scheduler}`)}`,
      ...alone,
    ]);
  }

  async #onPlane(name: string, args: readonly string[]): Promise<void> {
    const log = join(this.#lab.directory, `${name}.log`);
    const daemon = new Daemon(name, log, ...inNetns(this.#lab.remote, join(this.#programs, name), args));
    this.#lab.cleanup.add(name, () => daemon.stop('SIGKILL'));
  }

  async #prepareNode(): Promise<void> {
    const { node, plane } = this;
    await node.exec('sh', ['-c', 'cp -a /usr/lib/cni/. /opt/cni/bin/']);
    await node.write('/etc/cni/net.d/10-pods.conflist', JSON.stringify(NETWORK));
    await node.write('/etc/containerd/config.toml', CONTAINERD_CONFIG);
    await node.write('/etc/containerd/runsc.toml', RUNSC_CONFIG);
    await node.write('/etc/kubernetes/kubelet.yaml', stringify(KUBELET_CONFIG));
    const copy = async (name: string, subject: string) => {
      const path = await plane.writeCertifiedKubeconfig(name, subject);
      await node.exec('cp', [path, `/etc/kubernetes/${name}.kubeconfig`]);
    };
    await copy('kubelet', `/O=system:nodes/CN=system:node:${NODE_NAME}`);
    await copy('kube-proxy', '/CN=system:kube-proxy');
  }

  /** In this order. */
  async startNode(parts: readonly Part[]): Promise<void> {
    // Services have addresses that only a default route leads to, before kube-proxy's rules see the packet.
    await this.node.exec('ip', ['route', 'replace', 'default', 'via', PLANE_4]);
    await this.node.exec('ip', ['route', 'replace', 'default', 'via', PLANE_6]);
    for (const part of parts) {
      await this.startPart(part);
    }
  }

  async startPart(part: Part): Promise<void> {
    this.#starts += 1;
    const name = `${part}-${this.#starts}`;
    const { node } = this;
    switch (part) {
      case 'containerd': {
        const path = { PATH: `${TOOLS}:${process.env.PATH}` };
        const started = node.daemon(
          name,
          join(TOOLS, 'containerd'),
          ['--config', '/etc/containerd/config.toml'],
          path,
        );
        this.#running.set(part, started);
        await started.logged(/containerd successfully booted/);
        return;
      }
      case 'kubelet': {
        const args = [
          '--config=/etc/kubernetes/kubelet.yaml',
          '--kubeconfig=/etc/kubernetes/kubelet.kubeconfig',
          `--hostname-override=${NODE_NAME}`,
          `--node-ip=${NODE_4},${NODE_6}`,
        ];
        this.#running.set(part, node.daemon(name, join(this.#programs, 'kubelet'), args));
        return;
      }
      case 'kube-proxy': {
        const args = [
          `--proxy-mode=${this.#options.proxyMode ?? 'nftables'}`,
          `--cluster-cidr=${POD_RANGES}`,
          '--kubeconfig=/etc/kubernetes/kube-proxy.kubeconfig',
          `--hostname-override=${NODE_NAME}`,
          // They are the machine's, not the node's.
          '--conntrack-max-per-core=0',
          '--conntrack-tcp-timeout-established=0',
          '--conntrack-tcp-timeout-close-wait=0',
        ];
        this.#running.set(part, node.daemon(name, join(this.#programs, 'kube-proxy'), args));
      }
    }
  }

  async stopPart(part: Part, signal?: NodeJS.Signals): Promise<void> {
    await this.#running.get(part)?.stop(signal);
  }

  /** All of the node ends at once, and the kernel forgets it. The control plane is on another machine, and goes on. */
  async powerOff(): Promise<void> {
    this.#running.clear();
    await this.node.reboot();
  }

  /** Resolves when the node is ready. */
  async powerOn(order: readonly Part[]): Promise<void> {
    await this.startNode(order);
    await this.ready();
  }

  logOf(part: Part): string {
    return this.#running.get(part)?.log() ?? '';
  }

  /** What it was given an archive of is there without a registry. */
  async load(archive: string): Promise<void> {
    await this.#images('import', archive);
  }

  /** Another name of an image that is there. */
  async tag(name: string, another: string): Promise<void> {
    await this.#images('tag', name, another);
  }

  async #images(...words: readonly string[]): Promise<void> {
    const ctr = [`--address=${CONTAINERD}`, '--namespace=k8s.io', 'images', ...words];
    await this.node.exec(join(TOOLS, 'ctr'), ctr, { timeoutMs: 180_000 });
  }

  async ready(): Promise<void> {
    await waitFor(
      'the node to be ready',
      async () => {
        const kubelet = this.#running.get('kubelet');
        if (kubelet?.running !== true) {
          throw new Error(`the kubelet ended:\n${kubelet?.log().slice(-3_000)}`);
        }
        return (await this.tryKubectl(['get', 'nodes'])).stdout.includes(' Ready');
      },
      60_000,
      200,
    );
  }

  /** Its stdout. */
  kubectl(args: readonly string[], options?: RunOptions): Promise<string> {
    const [command = '', ...words] = this.kubectlCommand(args);
    return run(command, words, options);
  }

  tryKubectl(args: readonly string[], options?: RunOptions): Promise<Output> {
    const [command = '', ...words] = this.kubectlCommand(args);
    return tryRun(command, words, options);
  }

  /** As words, for others to run. */
  kubectlCommand(args: readonly string[]): string[] {
    const words = [`--kubeconfig=${this.kubeconfig}`, ...args];
    return inNetns(this.#lab.remote, join(this.#programs, 'kubectl'), words).flat();
  }

  async apply(...objects: readonly KubeObject[]): Promise<void> {
    await this.kubectl(['apply', '-f', '-'], {
      input: objects.map((object) => stringify(object)).join('---\n'),
    });
  }

  async get(...args: readonly string[]): Promise<KubeObject> {
    return JSON.parse(await this.kubectl(['get', '-o', 'json', ...args])) as KubeObject;
  }
}

const NETWORK = {
  cniVersion: '1.0.0',
  name: 'pods',
  plugins: [
    {
      type: 'ptp',
      ipMasq: false,
      ipam: {
        type: 'host-local',
        dataDir: '/run/cni/ipam',
        ranges: [[{ subnet: '10.66.16.0/20' }], [{ subnet: 'fd00:66:1::/64' }]],
        routes: [{ dst: '0.0.0.0/0' }, { dst: '::/0' }],
      },
    },
    { type: 'portmap', capabilities: { portMappings: true } },
  ],
};

const CONTAINERD_CONFIG = `version = 3
[grpc]
  address = "${CONTAINERD}"
[plugins."io.containerd.cri.v1.images"]
  snapshotter = "overlayfs"
  [plugins."io.containerd.cri.v1.images".pinned_images]
    sandbox = "${IMAGE}"
[plugins."io.containerd.cri.v1.runtime"]
  restrict_oom_score_adj = true
  disable_apparmor = true
  [plugins."io.containerd.cri.v1.runtime".cni]
    bin_dirs = ["/opt/cni/bin"]
    conf_dir = "/etc/cni/net.d"
  [plugins."io.containerd.cri.v1.runtime".containerd]
    default_runtime_name = "runc"
    [plugins."io.containerd.cri.v1.runtime".containerd.runtimes.runc]
      runtime_type = "io.containerd.runc.v2"
    [plugins."io.containerd.cri.v1.runtime".containerd.runtimes.gvisor]
      runtime_type = "io.containerd.runsc.v1"
      pod_annotations = ["*"]
      [plugins."io.containerd.cri.v1.runtime".containerd.runtimes.gvisor.options]
        TypeUrl = "io.containerd.runsc.v1.options"
        ConfigPath = "/etc/containerd/runsc.toml"
`;

const RUNSC_CONFIG = `binary_name = "${join(TOOLS, 'runsc')}"
[runsc_config]
  platform = "systrap"
  ignore-cgroups = "true"
  net-raw = "true"
`;

const KUBELET_CONFIG = {
  apiVersion: 'kubelet.config.k8s.io/v1beta1',
  kind: 'KubeletConfiguration',
  authentication: { anonymous: { enabled: true }, webhook: { enabled: false } },
  authorization: { mode: 'AlwaysAllow' },
  containerRuntimeEndpoint: `unix://${CONTAINERD}`,
  cgroupDriver: 'cgroupfs',
  enforceNodeAllocatable: [],
  failCgroupV1: false,
  failSwapOn: false,
  localStorageCapacityIsolation: false,
  evictionHard: Object.fromEntries(
    [
      'memory.available',
      'nodefs.available',
      'nodefs.inodesFree',
      'imagefs.available',
      'imagefs.inodesFree',
    ].map((signal) => [signal, '0%']),
  ),
  makeIPTablesUtilChains: false,
  resolvConf: '',
  // Nobody answers there: the cluster has no names of its own.
  clusterDNS: ['10.96.0.10'],
  registerNode: true,
  // So that what a test waits for comes soon.
  nodeStatusUpdateFrequency: '2s',
  syncFrequency: '5s',
};
