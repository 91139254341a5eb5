/** A real agent and a real reference proxy, started as a user would, inside a lab's node namespace. */

import { type ChildProcess, execFile, spawn } from 'node:child_process';
import { createWriteStream, existsSync, mkdirSync, readFileSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { promisify } from 'node:util';
import { stringify } from 'yaml';
import { ApiClient } from '../../src/api/client.js';
import { waitFor } from '../lab/exec.js';

const run = promisify(execFile);
const ROOT = join(import.meta.dirname, '../..');
const CLI = join(ROOT, 'bin/nodesentry');

/** What the harness needs of a lab: a network namespace by name and a folder of its own. */
export interface Node {
  readonly netns: string;
  readonly directory: string;
}

export interface Started {
  readonly pid: number;
  readonly logPath: string;
  log(): string;
  /** Ends when the process has gone. */
  stop(signal?: NodeJS.Signals): Promise<void>;
}

/** `nsenter` execs, so the pid is the process's own; `ip netns exec` would hide bpffs. */
export function startIn(node: Node, name: string, command: string, args: readonly string[]): Started {
  const logPath = join(node.directory, `${name}-${Date.now()}.log`);
  const out = createWriteStream(logPath);
  const child: ChildProcess = spawn('nsenter', [`--net=/run/netns/${node.netns}`, command, ...args], {
    stdio: ['ignore', 'pipe', 'pipe'],
  });
  child.stdout?.pipe(out, { end: false });
  child.stderr?.pipe(out, { end: false });
  const exited = new Promise<void>((resolve) => child.once('exit', () => resolve()));
  if (child.pid === undefined) {
    throw new Error(`${command} did not start`);
  }
  return {
    pid: child.pid,
    logPath,
    log: () => (existsSync(logPath) ? readFileSync(logPath, 'utf8') : ''),
    stop: async (signal = 'SIGTERM') => {
      if (child.exitCode === null && child.signalCode === null) {
        child.kill(signal);
        await exited;
      }
    },
  };
}

export interface AgentSettings {
  readonly sources: object;
  readonly failure?: 'closed' | 'open';
  readonly enrol?: 'labelled' | 'all';
  readonly instances?: readonly object[];
  readonly handlers?: Record<string, string>;
}

export class TestAgent {
  readonly #node: Node;
  readonly runDir: string;
  readonly bpffs: string;
  readonly configPath: string;
  readonly client: ApiClient;
  #process: Started | undefined;

  constructor(node: Node, settings: AgentSettings) {
    this.#node = node;
    this.runDir = join(node.directory, 'run');
    this.bpffs = join(node.directory, 'bpf');
    this.configPath = join(node.directory, 'config.yaml');
    mkdirSync(this.runDir, { recursive: true });
    writeFileSync(
      this.configPath,
      stringify({
        node: 'node-a',
        interception: { failure: settings.failure ?? 'closed', enrol: settings.enrol ?? 'labelled' },
        sources: settings.sources,
        instances: settings.instances ?? [
          {
            name: 'default',
            outbound: ['127.0.0.1:15001', '[::1]:15001'],
            inbound: ['127.0.0.1:15006', '[::1]:15006'],
          },
        ],
        ...(settings.handlers === undefined ? {} : { runtimes: { handlers: settings.handlers } }),
      }),
    );
    this.client = new ApiClient({ runDir: this.runDir });
  }

  get pid(): number | undefined {
    return this.#process?.pid;
  }

  log(): string {
    return this.#process?.log() ?? '';
  }

  async start(): Promise<void> {
    const args = ['--run-dir', this.runDir, '--bpffs', this.bpffs, '--config', this.configPath, 'agent'];
    const started = startIn(this.#node, 'agent', CLI, args);
    this.#process = started;
    await waitFor(
      'the agent to be ready',
      async () => {
        if (!existsSync(`/proc/${started.pid}`)) {
          throw new Error(`the agent ended:\n${started.log()}`);
        }
        return this.#isReady();
      },
      20_000,
    ).catch((error: unknown) => {
      throw new Error(`${String(error)}\n${started.log()}`);
    });
  }

  async stop(signal: NodeJS.Signals = 'SIGTERM'): Promise<void> {
    await this.#process?.stop(signal);
  }

  /** The CLI as a user runs it, in the node's namespace. */
  async cli(...args: string[]): Promise<{ stdout: string; stderr: string; code: number }> {
    const globals = ['--run-dir', this.runDir, '--bpffs', this.bpffs, '--config', this.configPath];
    try {
      const done = await run('nsenter', [`--net=/run/netns/${this.#node.netns}`, CLI, ...globals, ...args]);
      return { ...done, code: 0 };
    } catch (error) {
      const { stdout, stderr, code } = error as { stdout: string; stderr: string; code: number };
      return { stdout, stderr, code };
    }
  }

  async waitForState(podName: string, state: string, timeoutMs = 20_000): Promise<void> {
    await waitFor(
      `${podName} to be ${state}`,
      async () => {
        const { stdout, code } = await this.cli('pods', '--json');
        const pods =
          code === 0
            ? (JSON.parse(stdout) as {
                name?: string;
                podName?: string;
                state?: string;
                interception?: { state: string };
              }[])
            : [];
        return pods.some(
          (pod) => (pod.podName ?? pod.name) === podName && (pod.interception?.state ?? pod.state) === state,
        );
      },
      timeoutMs,
    ).catch(async (error: unknown) => {
      throw new Error(`${String(error)}\n${(await this.cli('pods')).stdout}\n${this.log().slice(-4000)}`);
    });
  }

  async close(): Promise<void> {
    await this.stop();
    await this.client.close();
    const { code, stderr } = await this.cli('cleanup');
    if (code !== 0) {
      throw new Error(`cleanup failed: ${stderr}`);
    }
  }

  async #isReady(): Promise<boolean> {
    const { code } = await this.cli('status', '--json');
    return code === 0 && existsSync(join(this.runDir, 'http.sock'));
  }
}

export interface ProxyFlow {
  readonly peer: string;
  readonly originalDst: string;
  readonly resolved?: string;
}

export class TestProxy {
  readonly #node: Node;
  readonly #runDir: string;
  #process: Started | undefined;

  constructor(node: Node, runDir: string) {
    this.#node = node;
    this.#runDir = runDir;
  }

  start(): void {
    this.#process = startIn(this.#node, 'proxy', CLI, [
      '--run-dir',
      this.#runDir,
      'proxy',
      '--outbound',
      '127.0.0.1:15001',
      '--outbound6',
      '[::1]:15001',
    ]);
  }

  get pid(): number | undefined {
    return this.#process?.pid;
  }

  /** Every JSON line that the proxy has printed. */
  lines(): Record<string, unknown>[] {
    return (this.#process?.log() ?? '')
      .split('\n')
      .filter((line) => line.startsWith('{'))
      .map((line) => JSON.parse(line) as Record<string, unknown>);
  }

  log(): string {
    return this.#process?.log() ?? '';
  }

  async stop(signal: NodeJS.Signals = 'SIGTERM'): Promise<void> {
    await this.#process?.stop(signal);
  }
}
