/** Starts the command of an instance, in a session of its own: it outlives whoever started it. */

import { type ChildProcess, spawn } from 'node:child_process';
import { accessSync, closeSync, constants, statSync } from 'node:fs';
import type { InstanceRun } from '../config/config.js';
import { InstanceStartError } from './errors.js';
import { namesOf } from './handed-sockets.js';
import { openMembers } from './limits.js';

export interface Launch {
  readonly run: InstanceRun;
  readonly stdout: number;
  readonly stderr: number;
  readonly sockets: { readonly texts: readonly string[]; readonly fds: readonly number[] };
  readonly cgroup: string | undefined;
}

/** Only the process itself can say its pid before it is another program: sd_listen_fds(3). */
const HANDED = 'LISTEN_PID=$$; export LISTEN_PID; ';

/** A process without a pid tells why by its event `error`. */
export function launch({ run, stdout, stderr, sockets, cgroup }: Launch): ChildProcess {
  const { command, environment, directory, user, group } = run;
  const handed = sockets.fds.length > 0;
  const members = cgroup === undefined ? undefined : openMembers(cgroup);
  const fd = 3 + sockets.fds.length;
  const join = members === undefined ? '' : `echo 0 >&${fd} || exit 125; exec ${fd}>&-; `;
  const script = `${handed ? HANDED : ''}${join}exec "$@"`;
  try {
    const child = spawn('/bin/sh', ['-c', script, 'sh', ...command], {
      cwd: directory,
      detached: true,
      env: {
        PATH: process.env.PATH,
        ...environment,
        ...(handed ? { LISTEN_FDS: String(sockets.fds.length), LISTEN_FDNAMES: namesOf(sockets.texts) } : {}),
      },
      stdio: ['ignore', stdout, stderr, ...sockets.fds, ...(members === undefined ? [] : [members])],
      ...(user === undefined ? {} : { uid: user }),
      ...(group === undefined ? {} : { gid: group }),
    });
    child.unref();
    return child;
  } finally {
    if (members !== undefined) {
      closeSync(members);
    }
  }
}

/** What can be told before: the shell would only say 126 or 127. Throws InstanceStartError. */
export function checkRun({ command: [path], directory }: InstanceRun): void {
  if (!statSync(path, { throwIfNoEntry: false })?.isFile()) {
    throw new InstanceStartError('COMMAND_NOT_FOUND', `command: there is no executable ${path}`);
  }
  try {
    accessSync(path, constants.X_OK);
  } catch (error) {
    const message = `command: ${path} may not be executed: run "chmod +x ${path}"`;
    throw new InstanceStartError('COMMAND_NOT_EXECUTABLE', message, { cause: error });
  }
  if (!statSync(directory, { throwIfNoEntry: false })?.isDirectory()) {
    throw new InstanceStartError('DIRECTORY_MISSING', `run.directory: there is no folder ${directory}`);
  }
}
