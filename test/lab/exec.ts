/** Running commands, here or in a network namespace, and taking everything back in the end. */

import { type ChildProcess, execFile, spawn } from 'node:child_process';
import { createWriteStream, existsSync, readFileSync } from 'node:fs';
import { setTimeout as delay } from 'node:timers/promises';
import { patient } from './patience.js';

export interface Output {
  readonly stdout: string;
  readonly stderr: string;
  readonly code: number;
}

export interface RunOptions {
  readonly env?: Readonly<Record<string, string>>;
  readonly input?: string | Buffer;
  /** Default 60 000; times the machine's patience. */
  readonly timeoutMs?: number;
}

/** The outcome, whatever it is; rejects only where the command could not be run. */
export function tryRun(command: string, args: readonly string[], options: RunOptions = {}): Promise<Output> {
  const timeout = patient(options.timeoutMs ?? 60_000);
  return new Promise((resolve, reject) => {
    const child = execFile(
      command,
      [...args],
      { maxBuffer: 256 << 20, timeout, env: { ...process.env, ...options.env } },
      (error, stdout, stderr) => {
        if (error !== null && typeof error.code !== 'number') {
          const why = error.killed === true ? `took longer than ${timeout} ms` : error.message;
          reject(new Error(`${command} ${args.join(' ')}: ${why}\n${stderr}`));
          return;
        }
        resolve({ stdout, stderr, code: error === null ? 0 : Number(error.code) });
      },
    );
    child.stdin?.on('error', () => undefined).end(options.input ?? '');
  });
}

/** Its stdout; rejects with its stderr where it exits with anything but 0. */
export async function run(
  command: string,
  args: readonly string[],
  options: RunOptions = {},
): Promise<string> {
  const { stdout, stderr, code } = await tryRun(command, args, options);
  if (code !== 0) {
    throw new Error(`${command} ${args.join(' ')} exited with ${code}: ${stderr.trim() || stdout.trim()}`);
  }
  return stdout;
}

/** `ip netns exec` would mount /sys anew and hide bpffs. */
export function inNetns(netns: string, command: string, args: readonly string[]): [string, string[]] {
  return ['nsenter', [`--net=/run/netns/${netns}`, '--', command, ...args]];
}

export function runIn(
  netns: string,
  command: string,
  args: readonly string[],
  options: RunOptions = {},
): Promise<string> {
  return run(...inNetns(netns, command, args), options);
}

/** One command after the other, as lines of a script without quoting. */
export async function script(netns: string | undefined, text: string): Promise<void> {
  for (const line of text
    .split('\n')
    .map((candidate) => candidate.trim())
    .filter((candidate) => candidate !== '')) {
    const [command, ...args] = line.split(/\s+/);
    await (netns === undefined ? run(command ?? '', args) : runIn(netns, command ?? '', args));
  }
}

/** Polls until `condition` gives something other than false or undefined. The limit is times the machine's patience. */
export async function waitFor<T>(
  what: string,
  condition: () => T | Promise<T>,
  timeoutMs = 10_000,
  everyMs = 25,
): Promise<Exclude<T, false | undefined>> {
  const limitMs = patient(timeoutMs);
  const deadline = Date.now() + limitMs;
  for (;;) {
    const result = await condition();
    if (result !== false && result !== undefined) {
      return result as Exclude<T, false | undefined>;
    }
    if (Date.now() > deadline) {
      throw new Error(`waited ${limitMs} ms for ${what}`);
    }
    await delay(everyMs);
  }
}

/** A process that runs until it is stopped, its output in a file. */
export class Daemon {
  readonly #child: ChildProcess;
  readonly #exited: Promise<void>;
  readonly logPath: string;
  readonly name: string;

  constructor(
    name: string,
    logPath: string,
    command: string,
    args: readonly string[],
    env: Readonly<Record<string, string>> = {},
  ) {
    this.name = name;
    this.logPath = logPath;
    const out = createWriteStream(logPath, { flags: 'a' });
    this.#child = spawn(command, [...args], {
      stdio: ['ignore', 'pipe', 'pipe'],
      env: { ...process.env, ...env },
    });
    this.#child.stdout?.pipe(out, { end: false });
    this.#child.stderr?.pipe(out, { end: false });
    this.#exited = new Promise((resolve) => {
      this.#child.once('exit', () => resolve());
      this.#child.once('error', () => resolve());
    });
  }

  get pid(): number {
    const { pid } = this.#child;
    if (pid === undefined) {
      throw new Error(`${this.name} did not start`);
    }
    return pid;
  }

  get running(): boolean {
    return this.#child.pid !== undefined && this.#child.exitCode === null && this.#child.signalCode === null;
  }

  log(): string {
    return existsSync(this.logPath) ? readFileSync(this.logPath, 'utf8') : '';
  }

  /** Waits for a line of the log. Fails as soon as the process has ended. */
  async logged(pattern: RegExp, timeoutMs = 20_000): Promise<void> {
    await waitFor(
      `${this.name} to log ${pattern}`,
      () => {
        if (!this.running) {
          throw new Error(`${this.name} ended:\n${this.log().slice(-3000)}`);
        }
        return pattern.test(this.log());
      },
      timeoutMs,
    );
  }

  /** Resolves when it has gone; SIGKILL after 10 s. */
  async stop(signal: NodeJS.Signals = 'SIGTERM'): Promise<void> {
    if (!this.running) {
      return;
    }
    this.#child.kill(signal);
    const force = setTimeout(() => this.#child.kill('SIGKILL'), 10_000);
    await this.#exited;
    clearTimeout(force);
  }
}

/** What has to be taken back, last first; one failure does not keep the rest from being tried. */
export class Cleanup {
  readonly #steps: { what: string; step: () => unknown }[] = [];

  add(what: string, step: () => unknown): void {
    this.#steps.push({ what, step });
  }

  async run(): Promise<void> {
    const failures: string[] = [];
    for (const { what, step } of this.#steps.splice(0).reverse()) {
      try {
        await step();
      } catch (error) {
        failures.push(`${what}: ${error instanceof Error ? error.message : String(error)}`);
      }
    }
    if (failures.length > 0) {
      throw new Error(`could not take everything back:\n${failures.join('\n')}`);
    }
  }
}
