/** Cgroups of version 2, alone or beside version 1, for processes of the lab. */

import { existsSync, mkdirSync, rmdirSync } from 'node:fs';
import { join } from 'node:path';
import type { Lab } from './lab.js';

/** Made, empty, and taken away with the lab. */
export function makeCgroup(lab: Lab, name: string): string {
  const mounts = ['/sys/fs/cgroup', '/sys/fs/cgroup/unified'];
  const mount = mounts.find((path) => existsSync(join(path, 'cgroup.controllers')));
  if (mount === undefined) {
    throw new Error('no cgroup of version 2 is mounted here');
  }
  const cgroup = join(mount, `nsl-${lab.id}-${name}`);
  mkdirSync(cgroup);
  lab.cleanup.add(`cgroup ${cgroup}`, () => rmdirSync(cgroup));
  return cgroup;
}

/** Words of a shell that goes into the cgroup and becomes the command after it. */
export function inCgroup(cgroup: string, command: readonly string[]): readonly string[] {
  return ['-c', `echo $$ > ${cgroup}/cgroup.procs; exec "$@"`, 'sh', ...command];
}
