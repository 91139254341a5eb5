/**
 * A pod in a QEMU microVM, wired the way Kata wires one: the CNI plugin makes the pod's namespace and eth0 as for any
 * pod, a tap or macvtap joins eth0 and the guest, and the guest has eth0's MAC and the pod's addresses. Emulated (TCG): KVM hangs on nested hosts.
 */

import { randomUUID } from 'node:crypto';
import {
  copyFileSync,
  createReadStream,
  createWriteStream,
  existsSync,
  mkdirSync,
  readdirSync,
  readFileSync,
  renameSync,
  statSync,
  writeFileSync,
} from 'node:fs';
import { connect, type Socket } from 'node:net';
import { join } from 'node:path';
import { pipeline } from 'node:stream/promises';
import { createGzip } from 'node:zlib';
import { type Attached, createNetwork, type Network } from './cni.js';
import { type Output, run, waitFor } from './exec.js';
import { buildApp, buildLoad, buildRootfs, CACHE } from './image.js';
import { type GuestNic, type KataModel, wireNic } from './kata.js';
import type { Lab } from './lab.js';
import type { LabPod, PodSpec, Topology } from './pod.js';

/** In the order in which they depend on each other. */
const MODULES = [
  'drivers/virtio/virtio_ring',
  'drivers/virtio/virtio',
  'drivers/virtio/virtio_pci_modern_dev',
  'drivers/virtio/virtio_pci_legacy_dev',
  'drivers/virtio/virtio_pci',
  'net/core/failover',
  'drivers/net/net_failover',
  'drivers/net/virtio_net',
];

/** Reads its addresses from the kernel's command line, then runs one command per line of the second serial port. */
const INIT = `#!/bin/sh
mount -t proc proc /proc
mount -t sysfs sys /sys
mount -t devtmpfs dev /dev
for word in $(cat /proc/cmdline); do
  case $word in pod.*=*) eval "\${word#pod.}" ;; esac
done
for module in ${MODULES.map((module) => module.split('/').at(-1)).join(' ')}; do insmod /modules/$module.ko; done
echo 0 > /proc/sys/net/ipv6/conf/all/accept_dad
echo 0 > /proc/sys/net/ipv6/conf/default/accept_dad
echo 0 > /proc/sys/net/ipv6/conf/eth0/accept_dad
ip link set lo up
ip link set eth0 up
ip addr add $ip4 dev eth0
ip addr add $ip6 dev eth0
ip route add $gw4 dev eth0
ip route add default via $gw4
ip -6 route add $gw6 dev eth0
ip -6 route add default via $gw6
[ -z "$first" ] || /bin/app first $(echo $first | tr + ' ') &
stty -F /dev/ttyS1 raw -echo
exec </dev/ttyS1 >/dev/ttyS1 2>&1
echo ready
while read -r id words; do
  said=$(/bin/app $words 2>&1)
  code=$?
  echo "$id $code $said"
done
`;

function kernel(): { image: string; modules: string } {
  const image = readdirSync('/boot')
    .filter((name) => /^vmlinuz-.*-cloud-amd64$/.test(name))
    .sort()
    .at(-1);
  if (image === undefined) {
    throw new Error('no cloud kernel in /boot: install linux-image-cloud-amd64');
  }
  return {
    image: join('/boot', image),
    modules: join('/usr/lib/modules', image.slice('vmlinuz-'.length), 'kernel'),
  };
}

/** The guest's root, made once per kernel and application; by several at once where they come at the same time. */
async function buildInitramfs(): Promise<string> {
  const { image, modules } = kernel();
  const path = join(CACHE, 'initramfs.gz');
  const sources = [await buildApp(), await buildLoad(), image, import.meta.filename];
  const newest = Math.max(...sources.map((source) => statSync(source).mtimeMs));
  if (existsSync(path) && statSync(path).mtimeMs > newest) {
    return path;
  }
  const root = join(CACHE, `initramfs-${process.pid}`);
  await buildRootfs(root);
  mkdirSync(join(root, 'modules'), { recursive: true });
  for (const module of MODULES) {
    copyFileSync(join(modules, `${module}.ko`), join(root, 'modules', `${module.split('/').at(-1)}.ko`));
  }
  writeFileSync(join(root, 'init'), INIT, { mode: 0o755 });
  await run('sh', ['-c', `cd '${root}' && find . | cpio --quiet -o -H newc > '${root}.cpio'`]);
  await pipeline(createReadStream(`${root}.cpio`), createGzip({ level: 1 }), createWriteStream(`${root}.gz`));
  renameSync(`${root}.gz`, path);
  await run('rm', ['-rf', root, `${root}.cpio`]);
  return path;
}

/** Commands over the guest's second serial port, one at a time. */
class Guest {
  readonly #socket: Socket;
  readonly #waiting = new Map<string, (output: Output) => void>();
  #buffer = '';
  #ready: (() => void) | undefined;
  #tail: Promise<unknown> = Promise.resolve();
  readonly ready: Promise<void>;

  constructor(path: string) {
    this.ready = new Promise((resolve) => {
      this.#ready = resolve;
    });
    this.#socket = connect(path);
    this.#socket.on('error', () => undefined);
    this.#socket.on('data', (data) => {
      this.#buffer += data.toString();
      const lines = this.#buffer.split('\n');
      this.#buffer = lines.pop() ?? '';
      for (const line of lines) {
        this.#line(line.trim());
      }
    });
  }

  #line(line: string): void {
    if (line === 'ready') {
      this.#ready?.();
      return;
    }
    const [id = '', code = '', ...words] = line.split(' ');
    const done = this.#waiting.get(id);
    this.#waiting.delete(id);
    done?.({ stdout: `${words.join(' ')}\n`, stderr: '', code: Number(code) });
  }

  command(words: readonly string[], timeoutMs: number): Promise<Output> {
    const next = this.#tail.then(
      () =>
        new Promise<Output>((resolve, reject) => {
          const id = randomUUID();
          const timer = setTimeout(() => {
            this.#waiting.delete(id);
            reject(new Error(`the guest did not answer "${words.join(' ')}" within ${timeoutMs} ms`));
          }, timeoutMs);
          this.#waiting.set(id, (output) => {
            clearTimeout(timer);
            resolve(output);
          });
          this.#socket.write(`${id} ${words.join(' ')}\n`);
        }),
    );
    this.#tail = next.catch(() => undefined);
    return next;
  }

  close(): void {
    this.#socket.destroy();
  }
}

export class MicroVms {
  readonly #lab: Lab;
  readonly #topology: Topology;
  readonly network: Network;

  /** Shares a network with `containerd` where one is given, so that pods of both stand side by side. */
  constructor(lab: Lab, topology: Topology, network?: Network) {
    this.#lab = lab;
    this.#topology = topology;
    this.network = network ?? createNetwork(lab, topology);
  }

  /** `first`: addresses and ports that the guest dials as soon as it has a network, before anybody asks it to. */
  async runPod(
    spec: Omit<PodSpec, 'runtime'>,
    first?: readonly string[],
    model: KataModel = 'tcfilter',
  ): Promise<LabPod> {
    const { name, namespace = 'default' } = spec;
    const lab = this.#lab;
    const netns = `nsl-${lab.id}-${name}`.slice(0, 60);
    const path = `/run/netns/${netns}`;
    await run('ip', ['netns', 'add', netns]);
    lab.cleanup.add(`netns ${netns}`, () => run('ip', ['netns', 'del', netns]));
    const uid = randomUUID();
    const ips = await this.network.attach(netns, path, {
      uid,
      namespace,
      name,
      annotations: spec.annotations ?? {},
    });
    lab.cleanup.add(`CNI DEL of ${name}`, () => this.network.detach(netns, path));
    const nic = await wireNic(lab, netns, model);
    const boot = (attempt: string) => this.#boot(attempt, netns, nic, ips, first);
    // Emulated on a busy machine, one in some hundreds hangs before its first process. That is the lab's failure alone.
    const { daemon, guest } = await boot(name).catch((error: unknown) => {
      process.stdout.write(`${name} is started once more: ${String(error)}\n`);
      return boot(`${name}-again`);
    });
    let stopped = false;
    return {
      name,
      namespace,
      uid,
      runtime: 'rund',
      netns: path,
      ips: { 4: ips[4], 6: ips[6] },
      app: (words, timeoutMs = 120_000) => guest.command(words, timeoutMs),
      stop: async () => {
        if (!stopped) {
          stopped = true;
          guest.close();
          await daemon.stop('SIGKILL');
        }
      },
    };
  }

  async #boot(
    name: string,
    netns: string,
    nic: GuestNic,
    ips: Attached,
    first: readonly string[] | undefined,
  ): Promise<{ daemon: ReturnType<Lab['daemon']>; guest: Guest }> {
    const lab = this.#lab;
    // ptp routes everything over its gateway; on a bridge the neighbours are on the link.
    const [prefix4, prefix6] = this.#topology === 'ptp' ? [32, 128] : [24, 64];
    const { gateway } = ips;
    const words = [
      'console=ttyS0 quiet panic=1 tsc=unstable',
      `pod.ip4=${ips[4]}/${prefix4} pod.ip6=${ips[6]}/${prefix6} pod.gw4=${gateway[4]} pod.gw6=${gateway[6]}`,
      ...(first === undefined ? [] : [`pod.first=${first.join('+')}`]),
    ];
    const [socket, console] = ['serial', 'console'].map((kind) => join(lab.directory, `${name}.${kind}`)) as [
      string,
      string,
    ];
    const initramfs = await buildInitramfs();
    const [command = '', ...start] = nic.command;
    const daemon = lab.daemon(netns, `qemu-${name}`, command, [
      ...start,
      '-accel',
      'tcg',
      '-m',
      '192',
      '-smp',
      '1',
      '-display',
      'none',
      '-no-reboot',
      '-nodefaults',
      '-kernel',
      kernel().image,
      '-initrd',
      initramfs,
      '-append',
      words.join(' '),
      '-serial',
      `file:${console}`,
      '-serial',
      `unix:${socket},server=on,wait=off`,
      '-netdev',
      nic.netdev,
      '-device',
      `virtio-net-pci,netdev=net0,mac=${nic.mac},romfile=`,
    ]);
    await waitFor(`QEMU of ${name}`, () => {
      if (!daemon.running) {
        throw new Error(`QEMU ended: ${daemon.log()}`);
      }
      return existsSync(socket);
    });
    const guest = new Guest(socket);
    lab.cleanup.add(`serial port of ${name}`, () => guest.close());
    let ready = false;
    void guest.ready.then(() => {
      ready = true;
    });
    try {
      await waitFor(
        `the guest of ${name} to be ready`,
        () => {
          if (!daemon.running) {
            throw new Error(`the guest of ${name} ended: ${daemon.log()}`);
          }
          return ready;
        },
        60_000,
      );
    } catch (error) {
      guest.close();
      await daemon.stop('SIGKILL');
      throw new Error(`${String(error)}\n${readFileSync(console, 'utf8').slice(-2_000)}`);
    }
    return { daemon, guest };
  }
}
