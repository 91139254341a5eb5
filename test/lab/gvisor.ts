/** gVisor sandboxes without containerd: an OCI bundle in a pod's namespace, which can be checkpointed and restored. */

import { mkdirSync, readFileSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { inNetns, type Output, tryRun } from './exec.js';
import { buildRootfs } from './image.js';
import type { Lab } from './lab.js';

/** The mount hides net.core.rmem_default, which this old runsc takes for the sign of the root namespace. */
const START =
  'mount -t tmpfs none /proc/sys/net; exec runsc --platform=ptrace --ignore-cgroups --net-raw "$@"';

export class GvisorSandbox {
  readonly #lab: Lab;
  readonly #directory: string;
  readonly #id: string;

  private constructor(lab: Lab, id: string) {
    this.#lab = lab;
    this.#id = id;
    this.#directory = join(lab.directory, `gvisor-${id}`);
  }

  /** The application pauses in it; `netns` is a path. */
  static async start(lab: Lab, id: string, netns: string): Promise<GvisorSandbox> {
    const sandbox = await GvisorSandbox.#prepare(lab, id, netns);
    await sandbox.#runsc('run', '--detach', '--bundle', sandbox.#directory, id);
    return sandbox;
  }

  /** Goes on where the checkpoint in `image` was taken, with the interfaces of the namespace at `netns`. */
  static async restore(lab: Lab, id: string, netns: string, image: string): Promise<GvisorSandbox> {
    const sandbox = await GvisorSandbox.#prepare(lab, id, netns);
    const words = ['--detach', `--image-path=${image}`, '--bundle', sandbox.#directory, id];
    await sandbox.#runsc('restore', ...words);
    return sandbox;
  }

  static async #prepare(lab: Lab, id: string, netns: string): Promise<GvisorSandbox> {
    const sandbox = new GvisorSandbox(lab, id);
    await buildRootfs(join(sandbox.#directory, 'rootfs'));
    const kinds = ['pid', 'mount', 'ipc', 'uts'].map((type) => ({ type }));
    const config = {
      ociVersion: '1.0.0',
      process: { user: { uid: 0, gid: 0 }, args: ['/bin/app', 'pause'], env: ['PATH=/bin'], cwd: '/' },
      root: { path: 'rootfs' },
      hostname: id,
      mounts: [{ destination: '/proc', type: 'proc', source: 'proc' }],
      linux: { namespaces: [...kinds, { type: 'network', path: netns }] },
    };
    writeFileSync(join(sandbox.#directory, 'config.json'), JSON.stringify(config));
    lab.cleanup.add(`sandbox ${id}`, () => sandbox.stop());
    return sandbox;
  }

  /** Ends the sandbox; returns the folder with its image. */
  async checkpoint(): Promise<string> {
    const image = join(this.#directory, 'image');
    mkdirSync(image);
    await this.#runsc('checkpoint', `--image-path=${image}`, this.#id);
    return image;
  }

  app(words: readonly string[], timeoutMs?: number): Promise<Output> {
    const command = this.#command('exec', this.#id, '/bin/app', ...words);
    return tryRun(...command, timeoutMs === undefined ? {} : { timeoutMs });
  }

  async stop(): Promise<void> {
    await this.#runsc('delete', '-force', this.#id);
  }

  /** Its output goes to a file: a sandbox holds on to what it was started with. */
  async #runsc(...words: readonly string[]): Promise<void> {
    const [command, args] = this.#command(...words);
    const log = join(this.#directory, 'runsc.log');
    const { code } = await tryRun('sh', [
      '-c',
      `exec "$@" >>'${log}' 2>&1 </dev/null`,
      'sh',
      command,
      ...args,
    ]);
    if (code !== 0) {
      throw new Error(
        `runsc ${words.join(' ')} exited with ${code}: ${readFileSync(log, 'utf8').slice(0, 2500)}`,
      );
    }
  }

  /** The sandbox's control socket is an abstract one of the namespace that runsc is called in. */
  #command(...words: readonly string[]): [string, string[]] {
    const root = `--root=${join(this.#directory, 'state')}`;
    return inNetns(this.#lab.node, 'unshare', ['-m', 'sh', '-c', START, 'runsc', root, ...words]);
  }
}
