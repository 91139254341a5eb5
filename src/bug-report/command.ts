/** Runs a command with limits on its time and on what is kept of its output. */

import { spawn } from 'node:child_process';
import { PART_BYTES, type Taken } from './part.js';

export interface CommandOptions {
  readonly timeoutMs?: number;
  readonly maxBytes?: number;
  /** Which end of an output that is too long is kept: default `start`. */
  readonly keep?: 'start' | 'end';
}

const TIMEOUT_MS = 20_000;
const STDERR_BYTES = 4_096;

/** What it printed, whatever its exit status is: the note tells. Rejects where it printed nothing and failed. */
export function runCommand(
  command: string,
  args: readonly string[],
  { timeoutMs = TIMEOUT_MS, maxBytes = PART_BYTES, keep = 'start' }: CommandOptions = {},
): Promise<Taken> {
  return new Promise((resolve, reject) => {
    const output = new Kept(maxBytes, keep);
    let stderr = '';
    let isLate = false;
    const child = spawn(command, args, {
      stdio: ['ignore', 'pipe', 'pipe'],
      env: { ...process.env, LC_ALL: 'C' },
    });
    const limit = setTimeout(() => {
      isLate = true;
      child.kill('SIGKILL');
      // What it has started may hold the pipes open.
      child.stdout.destroy();
      child.stderr.destroy();
    }, timeoutMs);
    child.stdout.on('data', (chunk: Buffer) => output.add(chunk));
    child.stderr.on('data', (chunk: Buffer) => {
      stderr = (stderr + chunk.toString()).slice(0, STDERR_BYTES);
    });
    child.once('error', (error: NodeJS.ErrnoException) => {
      clearTimeout(limit);
      reject(error.code === 'ENOENT' ? new Error(`${command} is not installed`) : error);
    });
    child.once('close', (status) => {
      clearTimeout(limit);
      const said = stderr.trim().split('\n')[0] ?? '';
      const end = isLate
        ? `ended after ${timeoutMs / 1_000} s`
        : status === 0
          ? ''
          : `exit status ${status}${said === '' ? '' : `: ${said}`}`;
      const { text, note } = output.taken();
      if (text.trim() === '' && end !== '') {
        reject(new Error(end));
      } else {
        resolve({ text, note: [end, note].filter((words) => words !== '').join('; ') });
      }
    });
  });
}

/** One end of a stream, whole lines where it was cut: half a secret would not be known for one. */
class Kept {
  readonly #max: number;
  readonly #keep: 'start' | 'end';
  #chunks: Buffer[] = [];
  #kept = 0;
  #seen = 0;

  constructor(max: number, keep: 'start' | 'end') {
    this.#max = max;
    this.#keep = keep;
  }

  add(chunk: Buffer): void {
    this.#seen += chunk.length;
    const isWanted = this.#keep === 'end' || this.#kept < this.#max;
    if (isWanted) {
      this.#chunks.push(chunk);
      this.#kept += chunk.length;
    }
    while (this.#keep === 'end' && this.#kept - (this.#chunks[0]?.length ?? 0) >= this.#max) {
      this.#kept -= this.#chunks.shift()?.length ?? 0;
    }
  }

  taken(): Taken {
    const all = Buffer.concat(this.#chunks);
    if (this.#seen <= this.#max) {
      return { text: all.toString(), note: '' };
    }
    const part = this.#keep === 'end' ? all.subarray(-this.#max) : all.subarray(0, this.#max);
    const lines =
      this.#keep === 'end'
        ? part.subarray(part.indexOf('\n') + 1)
        : part.subarray(0, part.lastIndexOf('\n') + 1);
    const which = this.#keep === 'end' ? 'last' : 'first';
    return { text: lines.toString(), note: `cut: the ${which} ${lines.length} of ${this.#seen} bytes` };
  }
}
