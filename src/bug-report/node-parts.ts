/** The node, its versions, and what the configuration names. */

import { readFileSync } from 'node:fs';
import { arch, cpus, machine, release, totalmem, type, version } from 'node:os';
import { parse } from 'yaml';
import { CNI_DEFAULTS, type Config } from '../config/config.js';
import { MANIFEST } from '../datapath/manifest.js';
import { layoutVersion, pinnedVersions } from '../kernel/pins.js';
import { CriClient } from '../pods/sources/cri-client.js';
import { packageVersion } from '../telemetry/version.js';
import { filePart, folderParts } from './files.js';
import { asJson, type Part, reasonOf, type Taken } from './part.js';
import { Secrets } from './secrets.js';

const DEFAULT_ENDPOINT = 'unix:///run/containerd/containerd.sock';
const CRI_MS = 5_000;
const POD_TOKEN = '/var/run/secrets/kubernetes.io/serviceaccount/token';

export interface Places {
  /** Path of the configuration, and what is in it where it is valid. */
  readonly path: string;
  readonly config: Config | undefined;
  readonly runDir: string;
  readonly bpffs: string;
  readonly bpfObjects: string;
}

export function nodeParts({ path, config, runDir, bpffs, bpfObjects }: Places): Part[] {
  const endpoint = config?.sources.cri?.endpoint ?? DEFAULT_ENDPOINT;
  const cni = config?.sources.cni ?? CNI_DEFAULTS;
  const file = config?.sources.static?.file;
  return [
    {
      name: 'versions.json',
      from: 'nodesentry, node, uname(2)',
      format: 'json',
      take: () => asJson(versions(bpffs, bpfObjects)),
    },
    filePart('node/proc-version.txt', '/proc/version', 'text'),
    {
      name: 'node/mounts.txt',
      from: '/proc/self/mounts, of the kernel itself',
      format: 'text',
      take: mounts,
    },
    {
      name: 'node/cri.json',
      from: `CRI Version at ${endpoint}`,
      format: 'json',
      take: () => runtime(endpoint),
    },
    filePart('configuration/config.yaml', path, 'yaml', true),
    {
      name: 'configuration/complete.json',
      from: 'the configuration with its defaults',
      format: 'json',
      take: () => {
        if (config === undefined) {
          throw new Error('the configuration is not valid: doctor.txt says where');
        }
        return asJson(config);
      },
    },
    ...(file === undefined ? [] : [filePart('configuration/pods.yaml', file, 'yaml', true)]),
    ...folderParts('state/run', runDir, formatOf),
    ...folderParts('state/cni', cni.stateDir, formatOf),
    ...folderParts('cni', cni.confDir, formatOf).filter(({ name }) =>
      /\.(?:conf|conflist|json|txt)$/.test(name),
    ),
  ];
}

/** `original-<digest>` is a CNI configuration. */
function formatOf(file: string): Part['format'] {
  if (file.endsWith('.ndjson')) {
    return 'ndjson';
  }
  return file.endsWith('.pid') ? 'text' : 'json';
}

function versions(bpffs: string, bpfObjects: string): object {
  return {
    nodesentry: packageVersion(),
    layout: orReason(() => layoutVersion(bpfObjects, MANIFEST.main)),
    pinnedLayouts: orReason(() => pinnedVersions(bpffs)),
    node: process.version,
    nodeLibraries: process.versions,
    kernel: { name: type(), release: release(), version: version(), machine: machine() },
    cpu: { architecture: arch(), count: cpus().length },
    memoryBytes: totalmem(),
  };
}

/** Volumes of pods are nobody's business here. */
function mounts(): Taken {
  const lines = readFileSync('/proc/self/mounts', 'utf8').split('\n');
  const isKernels = (line: string) =>
    ['bpf', 'cgroup', 'cgroup2', 'proc', 'sysfs', 'nsfs'].includes(line.split(' ')[2] ?? '');
  return { text: `${lines.filter(isKernels).join('\n')}\n`, note: '' };
}

function orReason<T>(read: () => T): T | { readonly problem: string } {
  try {
    return read();
  } catch (error) {
    return { problem: reasonOf(error) };
  }
}

async function runtime(endpoint: string): Promise<Taken> {
  const client = new CriClient(endpoint, CRI_MS);
  try {
    return asJson(await client.version());
  } finally {
    client.close();
  }
}

/** As they stand where this node keeps them; what cannot be read holds none that a part could give away. */
export function secretsOf({ path, config }: Pick<Places, 'path' | 'config'>): Secrets {
  const kubeconfig = config?.sources.kubernetes?.kubeconfig;
  const files = [path, config?.sources.static?.file, kubeconfig, process.env.KUBECONFIG].flatMap((file) =>
    file === undefined ? [] : [parsedFile(file)],
  );
  const token = text(POD_TOKEN)?.trim() ?? '';
  return new Secrets([...files, { token }, process.env]);
}

function parsedFile(path: string): unknown {
  try {
    return parse(text(path) ?? '', { logLevel: 'silent' }) as unknown;
  } catch {
    return undefined;
  }
}

function text(path: string): string | undefined {
  try {
    return readFileSync(path, 'utf8');
  } catch {
    return undefined;
  }
}
