/** What the tests of the addons stand on: a network namespace, a bpffs, other processes. All of it goes with `close`. */

import { type ChildProcess, execFileSync, spawn } from 'node:child_process';
import { mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { createInterface } from 'node:readline';
import { BpfObject, isBpffs, mountBpffs } from '../../src/native/bpf.js';
import { closeFd } from '../../src/native/descriptors.js';
import { interfaceIndex, openNamespace, withNetns } from '../../src/native/namespaces.js';

let serial = 0;

export function fixture(name: string): string {
  return join(process.cwd(), 'build/bpf-test', `${name}.bpf.o`);
}

export function loadProbe(): BpfObject {
  const object = BpfObject.open(fixture('probe'));
  object.load();
  return object;
}

export function u32(value: number): Buffer {
  const bytes = Buffer.alloc(4);
  bytes.writeUInt32LE(value);
  return bytes;
}

/** Undoes in reverse order, all of it even when one step fails. */
export class Cleanup {
  readonly #steps: (() => void)[] = [];

  add<T>(resource: T, undo: (resource: T) => void): T {
    this.#steps.push(() => undo(resource));
    return resource;
  }

  owned<T extends { close(): void }>(resource: T): T {
    return this.add(resource, (it) => it.close());
  }

  run(): void {
    const failures: unknown[] = [];
    for (const step of this.#steps.splice(0).reverse()) {
      try {
        step();
      } catch (error) {
        failures.push(error);
      }
    }
    if (failures.length > 0) {
      throw new AggregateError(failures, 'cleaning up');
    }
  }
}

/** A network namespace of its own, with lo up. */
export class Netns {
  readonly name = `nsn${process.pid}-${serial++}`;
  readonly path = `/run/netns/${this.name}`;
  readonly fd: number;

  constructor() {
    execFileSync('ip', ['netns', 'add', this.name]);
    this.fd = openNamespace(this.path);
    this.ip('link set lo up');
  }

  ip(command: string): void {
    execFileSync('ip', ['-n', this.name, ...command.split(' ')]);
  }

  /** Many commands in one process. */
  ipBatch(commands: readonly string[]): void {
    execFileSync('ip', ['-n', this.name, '-batch', '-'], { input: `${commands.join('\n')}\n` });
  }

  /** `ip netns exec` would remount /sys. */
  exec(command: string, ...args: string[]): string {
    return execFileSync('nsenter', [`--net=${this.path}`, command, ...args], { encoding: 'utf8' });
  }

  /** The ifindex of `name`, of a veth pair `name` and `name`-peer. */
  addVeth(name: string): number {
    this.ip(`link add name ${name} type veth peer name ${name}-peer`);
    return this.run(() => interfaceIndex(name)) ?? 0;
  }

  run<T>(body: () => T): T {
    return withNetns(this.fd, body);
  }

  close(): void {
    closeFd(this.fd);
    execFileSync('ip', ['netns', 'del', this.name]);
  }
}

export function temporaryFolder(cleanup: Cleanup): string {
  return cleanup.add(mkdtempSync(join(tmpdir(), 'nodesentry-native-')), (path) =>
    rmSync(path, { recursive: true }),
  );
}

export function temporaryBpffs(cleanup: Cleanup): string {
  const path = join(temporaryFolder(cleanup), 'bpf');
  cleanup.add(path, () => isBpffs(path) && execFileSync('umount', [path]));
  mountBpffs(path);
  return path;
}

/** Starts a process and resolves with its first line, which is JSON. */
export async function startProcess<T>(
  cleanup: Cleanup,
  command: string,
  ...args: string[]
): Promise<{ child: ChildProcess; pid: number; hello: T }> {
  const child = spawn(command, args, { stdio: ['pipe', 'pipe', 'inherit'] });
  cleanup.add(child, () => child.kill('SIGKILL'));
  for await (const line of createInterface({ input: child.stdout })) {
    return { child, pid: child.pid ?? 0, hello: JSON.parse(line) as T };
  }
  throw new Error(`${command} ended without a word`);
}
