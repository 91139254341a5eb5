/**
 * A machine of its own for a Kubernetes node: namespaces of every kind but the user's, on the network of the lab's node. What
 * a node has at fixed places (/run, /etc/cni, /opt/cni, /var/lib/kubelet, /sys/fs/bpf, the root of its cgroups) is its own.
 */

import { mkdirSync, readdirSync, readFileSync, rmdirSync, writeFileSync } from 'node:fs';
import { dirname, join } from 'node:path';
import { Daemon, inNetns, type Output, type RunOptions, run, tryRun, waitFor } from '../lab/exec.js';
import type { Lab } from '../lab/lab.js';

const ENTER = join(import.meta.dirname, 'node-enter');
const EXEC = join(import.meta.dirname, 'node-exec');
/** What the kubelet sets for the whole machine, whatever namespaces it is in. */
const MACHINE_SYSCTLS = ['vm/overcommit_memory', 'vm/panic_on_oom', 'kernel/panic', 'kernel/panic_on_oops'];

export class NodeProcess {
  readonly #node: Node;
  readonly #daemon: Daemon;
  readonly #pidFile: string;

  constructor(node: Node, daemon: Daemon, pidFile: string) {
    this.#node = node;
    this.#daemon = daemon;
    this.#pidFile = pidFile;
  }

  get running(): boolean {
    return this.#daemon.running;
  }

  log(): string {
    return this.#daemon.log();
  }

  logged(pattern: RegExp, timeoutMs?: number): Promise<void> {
    return this.#daemon.logged(pattern, timeoutMs);
  }

  /** Resolves when it has gone; SIGKILL after 10 s. */
  async stop(signal: NodeJS.Signals = 'SIGTERM'): Promise<void> {
    if (!this.running) {
      return;
    }
    await this.#kill(signal);
    const gone = () => !this.running;
    await waitFor(`${this.#daemon.name} to end`, gone).catch(() => this.#kill('SIGKILL'));
    await waitFor(`${this.#daemon.name} to be ended`, gone);
  }

  #kill(signal: NodeJS.Signals): Promise<Output> {
    return this.#node.tryExec('sh', ['-c', `kill -${signal.slice(3)} $(cat ${this.#pidFile})`]);
  }
}

export class Node {
  readonly #lab: Lab;
  readonly name: string;
  readonly directory: string;
  #machine: Daemon | undefined;
  #pid = 0;
  #starts = 0;

  private constructor(lab: Lab, name: string) {
    this.#lab = lab;
    this.name = name;
    this.directory = join(lab.directory, name);
  }

  static async start(lab: Lab, name: string): Promise<Node> {
    const node = new Node(lab, name);
    mkdirSync(node.directory);
    for (const path of MACHINE_SYSCTLS.map((sysctl) => join('/proc/sys', sysctl))) {
      const before = readFileSync(path, 'utf8');
      lab.cleanup.add(path, () => writeFileSync(path, before));
    }
    lab.cleanup.add(`cgroups of ${name}`, () => node.#removeCgroups());
    lab.cleanup.add(`node ${name}`, () => node.#end());
    await node.#boot();
    return node;
  }

  get #cgroup(): string {
    return `nsl-${this.#lab.id}-${this.name}`;
  }

  async #boot(): Promise<void> {
    this.#starts += 1;
    const log = join(this.#lab.directory, `${this.name}-${this.#starts}.log`);
    const words = [this.#cgroup, this.directory];
    const machine = new Daemon(this.name, log, ...inNetns(this.#lab.node, ENTER, words));
    this.#machine = machine;
    await machine.logged(/^ready$/m);
    // `unshare` is the parent of the process that is number 1 in there.
    const children = readFileSync(`/proc/${machine.pid}/task/${machine.pid}/children`, 'utf8');
    this.#pid = Number(children.trim());
  }

  /** Everything that runs on it ends at once, as when the power goes. */
  async #end(): Promise<void> {
    await this.#machine?.stop('SIGKILL');
    const { code } = await tryRun('kill', ['-0', String(this.#pid)]);
    if (code === 0) {
      await waitFor(
        `${this.name} to end`,
        async () => (await tryRun('kill', ['-0', String(this.#pid)])).code !== 0,
      );
    }
  }

  /** All processes end at once, and what the kernel had for the node is gone; files stay. */
  async reboot(): Promise<void> {
    await this.#end();
    await this.#removeCgroups();
    await this.#lab.renewNode();
    await this.#boot();
  }

  /** What is at this path on the node. */
  path(path: string): string {
    return join(`/proc/${this.#pid}/root`, path);
  }

  /** A process of the node. */
  command(command: string, args: readonly string[], pidFile = '/dev/null'): [string, string[]] {
    const enter = ['--target', String(this.#pid), '--all', '--wdns=/', '--'];
    return ['nsenter', [...enter, EXEC, pidFile, command, ...args]];
  }

  exec(command: string, args: readonly string[], options?: RunOptions): Promise<string> {
    return run(...this.command(command, args), options);
  }

  tryExec(command: string, args: readonly string[], options?: RunOptions): Promise<Output> {
    return tryRun(...this.command(command, args), options);
  }

  daemon(
    name: string,
    command: string,
    args: readonly string[],
    env: Readonly<Record<string, string>> = {},
  ): NodeProcess {
    const pidFile = `/run/${name}.pid`;
    const log = join(this.#lab.directory, `${name}.log`);
    const daemon = new Daemon(name, log, ...this.command(command, args, pidFile), env);
    return new NodeProcess(this, daemon, pidFile);
  }

  /** A file at a path of the node's. */
  async write(path: string, text: string): Promise<void> {
    await this.exec('mkdir', ['-p', dirname(path)]);
    await this.exec('tee', [path], { input: text });
  }

  /** Deepest first; the last processes in them may still be on their way out. */
  async #removeCgroups(): Promise<void> {
    const mounts = readFileSync('/proc/self/mounts', 'utf8')
      .split('\n')
      .map((line) => line.split(' '))
      .filter(([, , type]) => type === 'cgroup' || type === 'cgroup2')
      .map(([, path = '']) => path);
    for (const mount of mounts) {
      await waitFor(`the cgroups of ${this.name} in ${mount} to go`, () =>
        removed(join(mount, this.#cgroup)),
      );
    }
  }
}

function removed(cgroup: string): boolean {
  try {
    const below = readdirSync(cgroup, { withFileTypes: true }).filter((entry) => entry.isDirectory());
    if (!below.every(({ name }) => removed(join(cgroup, name)))) {
      return false;
    }
    rmdirSync(cgroup);
    return true;
  } catch (error) {
    const { code } = error as NodeJS.ErrnoException;
    if (code === 'EBUSY') {
      return false;
    }
    if (code === 'ENOENT') {
      return true;
    }
    throw error;
  }
}
