/** Debian's cloud kernels with their modules, unpacked beside the project and not installed. */

import { existsSync, mkdirSync, readdirSync, renameSync } from 'node:fs';
import { join } from 'node:path';
import { run } from '../lab/exec.js';
import { CACHE } from '../lab/image.js';

export interface Kernel {
  /** As `uname -r` prints it. */
  readonly release: string;
  readonly image: string;
  /** Holds lib/modules/RELEASE. */
  readonly root: string;
}

/** The package that depends on the newest of that series. */
const PACKAGES = { '6.1': 'linux-image-cloud-amd64', '6.12': 'linux-image-6.12-cloud-amd64' } as const;

export type Series = keyof typeof PACKAGES;
export const SERIES = Object.keys(PACKAGES) as Series[];

/** Fetched the first time. */
export async function kernelOf(series: Series): Promise<Kernel> {
  const folder = join(CACHE, 'kernels');
  mkdirSync(folder, { recursive: true });
  const root = join(folder, series);
  if (!existsSync(root)) {
    const depends = await run('apt-cache', ['depends', PACKAGES[series]]);
    const name = /Depends: (linux-image-\S+)/.exec(depends)?.[1];
    if (name === undefined) {
      throw new Error(`${PACKAGES[series]} names no kernel: ${depends}`);
    }
    process.stdout.write(`kernels: fetching ${name}\n`);
    await run(
      'sh',
      ['-c', `cd '${folder}' && rm -rf '${series}.new' ${name}_*.deb && apt-get download ${name}`],
      {
        timeoutMs: 300_000,
      },
    );
    await run('sh', ['-c', `cd '${folder}' && dpkg -x ${name}_*.deb '${series}.new' && rm ${name}_*.deb`]);
    const release = onlyEntry(join(folder, `${series}.new`, 'lib/modules'));
    await run('depmod', ['-b', join(folder, `${series}.new`), release]);
    renameSync(join(folder, `${series}.new`), root);
  }
  const release = onlyEntry(join(root, 'lib/modules'));
  return { release, root, image: join(root, 'boot', `vmlinuz-${release}`) };
}

/** What `modprobe` would load for these modules, in its order; what is built in is left out. */
export async function moduleFiles({ root, release }: Kernel, names: readonly string[]): Promise<string[]> {
  const files: string[] = [];
  for (const name of names) {
    const said = await run('modprobe', ['-d', root, '-S', release, '--show-depends', name]);
    files.push(...[...said.matchAll(/^insmod (\S+)/gm)].map(([, file]) => file ?? ''));
  }
  return [...new Set(files)];
}

function onlyEntry(folder: string): string {
  const [entry, ...more] = readdirSync(folder);
  if (entry === undefined || more.length > 0) {
    throw new Error(`${folder} should hold one entry: ${[entry, ...more].join(', ')}`);
  }
  return entry;
}
