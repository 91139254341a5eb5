/** What the checks ask the machine for, so that what this machine does not have can be tested. */

import { execFile } from 'node:child_process';
import { readFileSync } from 'node:fs';

/** A setting below /proc/sys, such as `net/ipv4/ip_forward`; undefined where it does not exist. */
export type Sysctl = (name: string) => string | undefined;

/** Runs a command and gives its stdout; rejects with CommandError. */
export type Command = (command: string, args: readonly string[], input?: string) => Promise<string>;

export class CommandError extends Error {
  override readonly name = 'CommandError';
  constructor(
    readonly code: 'COMMAND_MISSING' | 'COMMAND_FAILED',
    message: string,
    cause?: unknown,
  ) {
    super(message, { cause });
  }
}

const TIMEOUT_MS = 30_000;
/** A node with many services has tens of megabytes of rules. */
const OUTPUT_BYTES = 256 << 20;

export const readSysctl: Sysctl = (name) => {
  try {
    return readFileSync(`/proc/sys/${name}`, 'utf8').trim();
  } catch {
    return undefined;
  }
};

export const runCommand: Command = (command, args, input = '') =>
  new Promise((resolve, reject) => {
    const options = { timeout: TIMEOUT_MS, maxBuffer: OUTPUT_BYTES };
    const child = execFile(command, [...args], options, (error, stdout, stderr) => {
      if (error === null) {
        resolve(stdout);
      } else if (error.code === 'ENOENT') {
        reject(new CommandError('COMMAND_MISSING', `${command} is not installed`, error));
      } else {
        const why = error.killed === true ? `no answer within ${TIMEOUT_MS / 1_000} s` : stderr.trim();
        const message = `${[command, ...args].join(' ')}: ${why.split('\n')[0] || error.message}`;
        reject(new CommandError('COMMAND_FAILED', message, error));
      }
    });
    // A command may end before it has read everything (EPIPE); its exit status says why.
    child.stdin?.on('error', () => undefined).end(input);
  });

/** Whether a command is not installed, as opposed to having failed. */
export function isMissing(error: unknown): boolean {
  return error instanceof CommandError && error.code === 'COMMAND_MISSING';
}

/** `a, b, c and 4 more`. */
export function some(names: readonly string[], shown = 4): string {
  const rest = names.length - shown;
  return rest <= 0 ? names.join(', ') : `${names.slice(0, shown).join(', ')} and ${rest} more`;
}
