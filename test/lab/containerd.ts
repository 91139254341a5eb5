/**
 * A real containerd inside the lab's node, with runc, and with runsc as the handler `gvisor`: Debian's, or those of today
 * (`current`), which scripts/install-go-tools builds.
 *
 * Debian ships no runsc shim, so runsc stands in for runc behind the runc shim; a second container in such a sandbox
 * hangs, so the sandbox's own container is the workload there.
 */

import { randomUUID } from 'node:crypto';
import { chmodSync, mkdirSync, readFileSync, writeFileSync } from 'node:fs';
import { basename, join } from 'node:path';
import {
  type Client,
  credentials,
  loadPackageDefinition,
  type ServiceClientConstructor,
} from '@grpc/grpc-js';
import { loadSync } from '@grpc/proto-loader';
import { type Chained, createNetwork, type Network } from './cni.js';
import { Daemon, inNetns, type Output, run, tryRun, waitFor } from './exec.js';
import { buildImage, IMAGE } from './image.js';
import type { Lab } from './lab.js';
import type { LabPod, LabRuntime, PodSpec, Topology } from './pod.js';

const RUNSC = '/usr/bin/runsc';
/** What scripts/install-go-tools puts there. */
const TOOLS = join(import.meta.dirname, '../../.cache/bin');
/**
 * The mount hides net.core.rmem_default, which this old runsc takes for the sign of the root namespace. `kill` of a
 * sandbox that has gone is said in runc's words, which the shim knows to be no error.
 */
const RUNSC_WRAPPER = `#!/bin/sh
runsc() {
  unshare -m sh -c 'mount -t tmpfs none /proc/sys/net; exec ${RUNSC} --platform=ptrace --ignore-cgroups --net-raw "$@"' runsc "$@"
}
case " $* " in
  *" kill "*)
    said=$(runsc "$@" 2>&1) && exit 0
    case $said in *"is not running"*) said="container not running" ;; esac
    echo "$said" >&2
    exit 1 ;;
esac
runsc "$@"
`;

type Call = (method: string, request: object, timeoutMs?: number) => Promise<Record<string, unknown>>;

interface SandboxStatus {
  readonly status: {
    readonly network: { readonly ip: string; readonly additionalIps: readonly { ip: string }[] };
  };
  readonly info: { readonly info: string };
}

export interface ContainerdOptions {
  /** Our plugin in the chain from the start. */
  readonly chained?: Chained;
  /** containerd 2 with its own runc shim, and gVisor of 2025 with its own, instead of Debian's. Default false. */
  readonly current?: boolean;
  /** What a sandbox's own process runs, as words to `/bin/app`; default `pause`. */
  readonly sandbox?: readonly string[];
}

export class Containerd {
  readonly #lab: Lab;
  readonly #directory: string;
  readonly #options: ContainerdOptions;
  readonly network: Network;
  readonly socket: string;
  #daemon: Daemon | undefined;
  #boots = 0;
  #client: (Client & Record<string, unknown>) | undefined;

  private constructor(lab: Lab, topology: Topology, options: ContainerdOptions) {
    this.#lab = lab;
    this.#options = options;
    this.#directory = join(lab.directory, `containerd-${topology}${options.current === true ? '-2' : ''}`);
    this.network = createNetwork(lab, topology, options.chained);
    this.socket = join(this.#directory, 'containerd.sock');
  }

  static async start(lab: Lab, topology: Topology, options: ContainerdOptions = {}): Promise<Containerd> {
    const containerd = new Containerd(lab, topology, options);
    await containerd.#start(topology);
    return containerd;
  }

  async #start(topology: Topology): Promise<void> {
    mkdirSync(this.#directory);
    const wrapper = join(this.#directory, 'runsc-as-runc');
    writeFileSync(wrapper, RUNSC_WRAPPER);
    chmodSync(wrapper, 0o755);
    const config = join(this.#directory, 'config.toml');
    writeFileSync(config, this.#options.current === true ? this.#currentConfig() : this.#config(wrapper));
    this.#lab.cleanup.add(`mounts of containerd (${topology})`, () => this.#unmount());
    this.#lab.cleanup.add(`containerd (${topology})`, () => this.#daemon?.stop());
    await this.#boot();
    await run(this.#tool('ctr'), [
      '-a',
      this.socket,
      '-n',
      'k8s.io',
      'images',
      'import',
      await buildImage(this.#directory, this.#options.sandbox),
    ]);

    const definition = loadSync(join(import.meta.dirname, 'cri-lab.proto'), {
      longs: Number,
      defaults: true,
    });
    const { runtime } = loadPackageDefinition(definition) as unknown as {
      runtime: { v1: { RuntimeService: ServiceClientConstructor } };
    };
    const client = new runtime.v1.RuntimeService(`unix://${this.socket}`, credentials.createInsecure());
    this.#client = client as unknown as Client & Record<string, unknown>;
    this.#lab.cleanup.add('CRI client', () => client.close());
    await this.#answers();
  }

  async #boot(): Promise<void> {
    this.#boots += 1;
    const name = `${basename(this.#directory)}-${this.#boots}`;
    const log = join(this.#lab.directory, `${name}.log`);
    const config = join(this.#directory, 'config.toml');
    this.#daemon = new Daemon(
      name,
      log,
      ...inNetns(this.#lab.node, this.#tool('containerd'), ['--config', config]),
      {
        // Where it looks for shims.
        PATH: this.#options.current === true ? `${TOOLS}:${process.env.PATH}` : (process.env.PATH ?? ''),
      },
    );
    await this.#daemon.logged(/containerd successfully booted/);
  }

  async #answers(): Promise<void> {
    await waitFor(
      'the CRI plugin',
      () =>
        this.call('Version', {}).then(
          () => true,
          () => false,
        ),
      20_000,
    );
  }

  /** Containers go on; the socket is a new one. */
  async restart(): Promise<void> {
    await this.down();
    await this.up();
  }

  async down(): Promise<void> {
    await this.#daemon?.stop();
  }

  async up(): Promise<void> {
    await this.#boot();
    await this.#answers();
  }

  #config(wrapper: string): string {
    const cri = 'plugins."io.containerd.grpc.v1.cri"';
    return `version = 2
root = "${join(this.#directory, 'root')}"
state = "${join(this.#directory, 'state')}"
[grpc]
  address = "${this.socket}"
[${cri}]
  sandbox_image = "${IMAGE}"
  restrict_oom_score_adj = true
  disable_apparmor = true
  [${cri}.cni]
    bin_dir = "${this.network.plugins}"
    conf_dir = "${this.network.directory}"
  [${cri}.containerd]
    snapshotter = "overlayfs"
    default_runtime_name = "runc"
    [${cri}.containerd.runtimes.runc]
      runtime_type = "io.containerd.runc.v2"
      [${cri}.containerd.runtimes.runc.options]
        Root = "${join(this.#directory, 'runc')}"
    [${cri}.containerd.runtimes.gvisor]
      runtime_type = "io.containerd.runc.v2"
      pod_annotations = ["*"]
      [${cri}.containerd.runtimes.gvisor.options]
        BinaryName = "${wrapper}"
        Root = "${join(this.#directory, 'runsc')}"
`;
  }

  #tool(name: 'containerd' | 'ctr'): string {
    return this.#options.current === true ? join(TOOLS, name) : name;
  }

  /** Version 3, and gVisor by its own shim, which takes the words of `runsc` from a file. */
  #currentConfig(): string {
    const [images, runtime] = [
      'plugins."io.containerd.cri.v1.images"',
      'plugins."io.containerd.cri.v1.runtime"',
    ];
    const runsc = join(this.#directory, 'runsc.toml');
    writeFileSync(
      runsc,
      `binary_name = "${join(TOOLS, 'runsc')}"
root = "${join(this.#directory, 'runsc')}"
[runsc_config]
  platform = "systrap"
  ignore-cgroups = "true"
  net-raw = "true"
`,
    );
    return `version = 3
root = "${join(this.#directory, 'root')}"
state = "${join(this.#directory, 'state')}"
[grpc]
  address = "${this.socket}"
[${images}]
  snapshotter = "overlayfs"
  [${images}.pinned_images]
    sandbox = "${IMAGE}"
[${runtime}]
  restrict_oom_score_adj = true
  disable_apparmor = true
  [${runtime}.cni]
    bin_dirs = ["${this.network.plugins}"]
    conf_dir = "${this.network.directory}"
  [${runtime}.containerd]
    default_runtime_name = "runc"
    [${runtime}.containerd.runtimes.runc]
      runtime_type = "io.containerd.runc.v2"
      [${runtime}.containerd.runtimes.runc.options]
        Root = "${join(this.#directory, 'runc')}"
    [${runtime}.containerd.runtimes.gvisor]
      runtime_type = "io.containerd.runsc.v1"
      pod_annotations = ["*"]
      [${runtime}.containerd.runtimes.gvisor.options]
        TypeUrl = "io.containerd.runsc.v1.options"
        ConfigPath = "${runsc}"
`;
  }

  readonly call: Call = (method, request, timeoutMs = 60_000) =>
    new Promise((resolve, reject) => {
      const client = this.#client;
      const rpc = client?.[method] as
        | ((
            request: object,
            options: object,
            done: (error: Error | null, reply: Record<string, unknown>) => void,
          ) => void)
        | undefined;
      if (client === undefined || rpc === undefined) {
        reject(new Error(`containerd is not running, or has no ${method}`));
        return;
      }
      rpc.call(client, request, { deadline: Date.now() + timeoutMs }, (error, reply) =>
        error === null ? resolve(reply) : reject(new Error(`${method}: ${error.message}`)),
      );
    });

  /** Runs a pod as the kubelet would; it is stopped with the lab at the latest. */
  async runPod(spec: PodSpec): Promise<LabPod> {
    const { name, namespace = 'default', runtime } = spec;
    const uid = spec.uid ?? randomUUID();
    const config = {
      metadata: { name, namespace, uid, attempt: 0 },
      hostname: name,
      logDirectory: this.#directory,
      labels: { ...spec.labels },
      annotations: { ...spec.annotations },
      linux: {},
    };
    const runtimeHandler = runtime === 'runsc' ? 'gvisor' : '';
    const started = this.call('RunPodSandbox', { config, runtimeHandler }) as Promise<{
      podSandboxId: string;
    }>;
    let stopped = false;
    const stop = async (): Promise<void> => {
      const sandbox = await started.catch(() => undefined);
      if (sandbox !== undefined && !stopped) {
        stopped = true;
        await this.call('StopPodSandbox', sandbox);
        await this.call('RemovePodSandbox', sandbox);
      }
    };
    // Before it has started: a test that fails meanwhile, for another pod's sake, must not leave it behind.
    this.#lab.cleanup.add(`pod ${name}`, stop);
    const { podSandboxId } = await started;

    const { status, info } = (await this.call('PodSandboxStatus', {
      podSandboxId,
      verbose: true,
    })) as unknown as SandboxStatus;
    const ips = [status.network.ip, ...status.network.additionalIps.map(({ ip }) => ip)];
    const details = JSON.parse(info.info) as {
      runtimeSpec: { linux: { namespaces: { type: string; path?: string }[] } };
    };
    const netns = details.runtimeSpec.linux.namespaces.find(({ type }) => type === 'network')?.path ?? '';
    const app = spec.sandboxOnly
      ? () => Promise.reject(new Error(`${name} has no container of its own`))
      : runtime === 'runsc' && this.#options.current !== true
        ? (words: readonly string[], timeoutMs?: number) => this.#execRunsc(podSandboxId, words, timeoutMs)
        : await this.#startContainer(podSandboxId, config, runtime);
    return {
      name,
      namespace,
      uid,
      runtime,
      netns,
      ips: {
        4: ips.find((ip) => !ip.includes(':')) ?? '',
        6: ips.find((ip) => ip.includes(':')) ?? '',
      },
      app,
      stop,
    };
  }

  async #startContainer(
    podSandboxId: string,
    sandboxConfig: object,
    runtime: LabRuntime,
  ): Promise<LabPod['app']> {
    // A gVisor that knows no IPV6_HDRINCL forges an address by giving it to its own interface.
    const addCapabilities = runtime === 'runsc' ? ['NET_RAW', 'NET_ADMIN'] : ['NET_RAW'];
    const config = {
      metadata: { name: 'app' },
      image: { image: IMAGE },
      command: ['/bin/app', 'pause'],
      logPath: 'app.log',
      linux: { securityContext: { capabilities: { addCapabilities } } },
    };
    const { containerId } = (await this.call('CreateContainer', { podSandboxId, config, sandboxConfig })) as {
      containerId: string;
    };
    await this.call('StartContainer', { containerId });
    return async (words, timeoutMs = 60_000) => {
      const request = { containerId, cmd: ['/bin/app', ...words], timeout: Math.ceil(timeoutMs / 1000) };
      const done = (await this.call('ExecSync', request, timeoutMs + 5_000)) as {
        stdout: Buffer;
        stderr: Buffer;
        exitCode: number;
      };
      return { stdout: done.stdout.toString(), stderr: done.stderr.toString(), code: done.exitCode };
    };
  }

  #execRunsc(sandboxId: string, words: readonly string[], timeoutMs = 60_000): Promise<Output> {
    const root = join(this.#directory, 'runsc/k8s.io');
    // The sandbox's control socket is an abstract one of the namespace that containerd runs in.
    const command = inNetns(this.#lab.node, RUNSC, [
      `--root=${root}`,
      '--net-raw',
      'exec',
      '--cap=CAP_NET_RAW',
      '--cap=CAP_NET_ADMIN',
      sandboxId,
      '/bin/app',
      ...words,
    ]);
    return tryRun(...command, { timeoutMs });
  }

  /** Whatever is still mounted below our folder, deepest first. */
  async #unmount(): Promise<void> {
    const targets = readFileSync('/proc/self/mounts', 'utf8')
      .split('\n')
      .map((line) => line.split(' ')[1] ?? '')
      .filter((target) => target.startsWith(`${this.#directory}/`));
    for (const target of targets.reverse()) {
      await run('umount', ['-l', target]);
    }
  }
}
