/**
 * Stand-in for the kubelet: starts a pod template through the CRI of a real containerd, translating every field that
 * our manifests use as the kubelet does. Fields that it does not know are errors, so that none is left unproven.
 */

import { randomUUID } from 'node:crypto';
import { existsSync, readFileSync } from 'node:fs';
import { join } from 'node:path';
import type { Containerd } from '../lab/containerd.js';
import { type Output, waitFor } from '../lab/exec.js';
import type { Lab } from '../lab/lab.js';
import type { Container, PodSpec } from './manifests.js';

const [OF_POD, OF_CONTAINER, OF_NODE] = [0, 1, 2];
const EXITED = 2;
/** procMount: Default (kubernetes/kubernetes, pkg/securitycontext). */
const MASKED = [
  '/proc/asound',
  '/proc/acpi',
  '/proc/kcore',
  '/proc/keys',
  '/proc/latency_stats',
  '/proc/timer_list',
  '/proc/timer_stats',
  '/proc/sched_debug',
  '/proc/scsi',
  '/sys/firmware',
];
const READ_ONLY = ['/proc/bus', '/proc/fs', '/proc/irq', '/proc/sys', '/proc/sysrq-trigger'];
const KNOWN_FIELDS = new Set([
  ...['name', 'image', 'command', 'args', 'env', 'securityContext', 'volumeMounts', 'resources'],
  ...['startupProbe', 'livenessProbe', 'readinessProbe'],
]);

export interface KubeletOptions {
  readonly lab: Lab;
  readonly containerd: Containerd;
  readonly nodeName: string;
  /** Where the lab's node has what is at this path on a real one. */
  readonly hostPath: (path: string) => string;
  /** Folder with the files of a config map. */
  readonly configMap: (name: string) => string;
}

export class NodePod {
  constructor(
    readonly containerId: string,
    readonly stop: () => Promise<void>,
    private readonly containerd: Containerd,
    private readonly logPath: string,
  ) {}

  async exec(command: readonly string[], timeoutMs = 60_000): Promise<Output> {
    const request = {
      containerId: this.containerId,
      cmd: [...command],
      timeout: Math.ceil(timeoutMs / 1000),
    };
    const done = (await this.containerd.call('ExecSync', request, timeoutMs + 5_000)) as {
      stdout: Buffer;
      stderr: Buffer;
      exitCode: number;
    };
    return { stdout: done.stdout.toString(), stderr: done.stderr.toString(), code: done.exitCode };
  }

  /** Of the container's first process, as the node counts. */
  async pid(): Promise<number> {
    const { info } = (await this.containerd.call('ContainerStatus', {
      containerId: this.containerId,
      verbose: true,
    })) as { info: { info: string } };
    return (JSON.parse(info.info) as { pid: number }).pid;
  }

  async exitCode(timeoutMs = 60_000): Promise<number> {
    return await waitFor(
      'the container to end',
      async () => {
        const { status } = (await this.containerd.call('ContainerStatus', {
          containerId: this.containerId,
        })) as { status: { state: number; exitCode: number } };
        return status.state === EXITED ? status.exitCode : undefined;
      },
      timeoutMs,
    );
  }

  /** What it wrote: the CRI log without its prefix (time, stream, tag). */
  log(): string {
    const text = existsSync(this.logPath) ? readFileSync(this.logPath, 'utf8') : '';
    return text
      .split('\n')
      .map((line) => line.split(' ').slice(3).join(' '))
      .join('\n');
  }
}

export class Kubelet {
  readonly #options: KubeletOptions;

  constructor(options: KubeletOptions) {
    this.#options = options;
  }

  /** Init containers one after the other, then the first container of the template; gone with the lab at the latest. */
  async start(name: string, spec: PodSpec): Promise<NodePod> {
    const { containerd, lab } = this.#options;
    const namespaces = {
      network: spec.hostNetwork === true ? OF_NODE : OF_POD,
      pid: spec.hostPID === true ? OF_NODE : OF_CONTAINER,
      ipc: OF_POD,
    };
    const sandboxConfig = {
      metadata: { name, namespace: 'nodesentry-system', uid: randomUUID(), attempt: 0 },
      hostname: spec.hostNetwork === true ? '' : name, // it shares the node's UTS namespace
      logDirectory: lab.directory,
      labels: {},
      annotations: {},
      linux: { securityContext: { namespaceOptions: namespaces } },
    };
    const { podSandboxId } = (await containerd.call('RunPodSandbox', { config: sandboxConfig })) as {
      podSandboxId: string;
    };
    let current: string | undefined;
    let stopped = false;
    const stop = async (): Promise<void> => {
      if (!stopped) {
        stopped = true;
        if (current !== undefined) {
          await containerd.call('StopContainer', { containerId: current, timeout: 30 });
        }
        await containerd.call('StopPodSandbox', { podSandboxId });
        await containerd.call('RemovePodSandbox', { podSandboxId });
      }
    };
    lab.cleanup.add(`pod ${name}`, stop);

    const create = async (container: Container): Promise<NodePod> => {
      const logPath = `${name}-${container.name}-${podSandboxId.slice(0, 8)}.log`;
      const config = this.#containerConfig(container, spec, namespaces, logPath);
      const { containerId } = (await containerd.call('CreateContainer', {
        podSandboxId,
        config,
        sandboxConfig,
      })) as { containerId: string };
      current = containerId;
      await containerd.call('StartContainer', { containerId });
      return new NodePod(containerId, stop, containerd, join(lab.directory, logPath));
    };
    for (const container of spec.initContainers ?? []) {
      const started = await create(container);
      const code = await started.exitCode();
      if (code !== 0) {
        throw new Error(`init container ${container.name} exited with ${code}:\n${started.log()}`);
      }
    }
    const [first] = spec.containers;
    if (first === undefined) {
      throw new Error(`${name} has no container`);
    }
    return create(first);
  }

  #containerConfig(container: Container, spec: PodSpec, namespaceOptions: object, logPath: string): object {
    const unknown = Object.keys(container).filter((field) => !KNOWN_FIELDS.has(field));
    if (unknown.length > 0) {
      throw new Error(`${container.name}: this stand-in does not know ${unknown.join(', ')}`);
    }
    const { securityContext: context } = container;
    return {
      metadata: { name: container.name },
      image: { image: container.image },
      command: container.command ?? [],
      args: container.args ?? [],
      envs: (container.env ?? []).map(({ name, value, valueFrom }) => ({
        key: name,
        value: value ?? this.#field(valueFrom?.fieldRef.fieldPath),
      })),
      mounts: (container.volumeMounts ?? []).map(
        ({ name, mountPath, mountPropagation, readOnly = false }) => ({
          containerPath: mountPath,
          hostPath: this.#source(name, spec),
          readonly: readOnly,
          propagation: mountPropagation === 'HostToContainer' ? 1 : 0,
        }),
      ),
      logPath,
      linux: {
        resources: { memoryLimitInBytes: bytes(container.resources?.limits?.memory) },
        securityContext: {
          capabilities: {
            addCapabilities: context.capabilities.add ?? [],
            dropCapabilities: context.capabilities.drop,
          },
          namespaceOptions,
          runAsUser: { value: context.runAsUser },
          ...(context.runAsGroup === undefined ? {} : { runAsGroup: { value: context.runAsGroup } }),
          readonlyRootfs: context.readOnlyRootFilesystem,
          noNewPrivs: !context.allowPrivilegeEscalation,
          maskedPaths: MASKED,
          readonlyPaths: READ_ONLY,
          seccomp: { profileType: 0 },
          ...(context.appArmorProfile === undefined ? {} : { apparmor: { profileType: 1 } }),
        },
      },
    };
  }

  #field(path: string | undefined): string {
    if (path !== 'spec.nodeName') {
      throw new Error(`this stand-in does not know the field ${path}`);
    }
    return this.#options.nodeName;
  }

  #source(name: string, { volumes = [] }: PodSpec): string {
    const volume = volumes.find((candidate) => candidate.name === name);
    if (volume?.hostPath !== undefined) {
      return this.#options.hostPath(volume.hostPath.path);
    }
    if (volume?.configMap !== undefined) {
      return this.#options.configMap(volume.configMap.name);
    }
    throw new Error(`there is no volume ${name}, or of a kind that this stand-in does not know`);
  }
}

/** Kubernetes' binary suffixes, as far as our manifests use them. 0: no limit. */
function bytes(quantity: string | undefined): number {
  if (quantity === undefined) {
    return 0;
  }
  const [, number, unit] = /^(\d+)(Mi|Gi)$/.exec(quantity) ?? [];
  if (number === undefined) {
    throw new Error(`this stand-in does not know the quantity ${quantity}`);
  }
  return Number(number) * (unit === 'Gi' ? 1 << 30 : 1 << 20);
}
