/**
 * An emulated machine (QEMU, TCG) that boots another kernel with this machine's own root: read-only by virtiofs, under an
 * overlay in the guest's memory, so that nothing which is done in it is left. What it needs of Debian is in
 * scripts/install-debian-packages.
 */

import { spawn } from 'node:child_process';
import {
  createWriteStream,
  existsSync,
  mkdirSync,
  mkdtempSync,
  readFileSync,
  rmSync,
  writeFileSync,
} from 'node:fs';
import { tmpdir } from 'node:os';
import { basename, join } from 'node:path';
import { Cleanup, Daemon, run, waitFor } from '../lab/exec.js';
import { type Kernel, moduleFiles } from './kernels.js';

const VIRTIOFSD = '/usr/lib/qemu/virtiofsd';
/** To reach the root file system. */
const BOOT_MODULES = ['virtio_pci', 'virtiofs', 'overlay'];
const MEMORY = '6G';
/**
 * An emulated processor may meet an instruction that another is just rewriting (the kernel's jump labels, while it boots)
 * and trap. A guest that has not come to its script is booted again.
 */
const BOOTS = 4;
const BEGUN = 'guest: the script begins';
const ROOT = join(import.meta.dirname, '../..');

export interface GuestJob {
  /** Run by bash as root, in the guest's own root. */
  readonly script: string;
  readonly timeoutMs: number;
  /** The guest's console. */
  readonly consolePath: string;
  /** Called with the console's output as it comes. */
  readonly onOutput?: (text: string) => void;
}

export interface GuestOutcome {
  /** undefined: the guest did not come to the end of the script. */
  readonly code: number | undefined;
  /** What the script wrote to /run/report. */
  readonly report: string;
}

/** Boots, runs the script, ends. */
export async function runInGuest(kernel: Kernel, job: GuestJob): Promise<GuestOutcome> {
  const directory = mkdtempSync(join(tmpdir(), 'nodesentry-vm-'));
  const cleanup = new Cleanup();
  cleanup.add('the folder of the machine', () => rmSync(directory, { recursive: true, force: true }));
  try {
    const initramfs = await buildInitramfs(kernel, directory, job.script);
    const report = join(directory, 'report');
    for (let n = 1; !(await boot(kernel, { ...job, initramfs, directory, report })); n++) {
      if (n === BOOTS) {
        throw new Error(`the guest did not come up in ${BOOTS} attempts: see ${job.consolePath}`);
      }
      process.stdout.write('kernels: the guest did not come up; once more\n');
    }
    const text = readFileSync(report, 'utf8');
    const end = /\nend of report (\d+)\s*$/.exec(`\n${text}`);
    return {
      code: end === null ? undefined : Number(end[1]),
      report: end === null ? text : text.slice(0, Math.max(0, end.index - 1)),
    };
  } finally {
    await cleanup.run();
  }
}

interface Boot extends GuestJob {
  readonly initramfs: string;
  readonly directory: string;
  readonly report: string;
}

/** Whether it came to its script. */
async function boot(kernel: Kernel, { initramfs, directory, report, ...job }: Boot): Promise<boolean> {
  const socket = join(directory, 'root.sock');
  // Serves one guest, and ends with it.
  const files = new Daemon('virtiofsd', join(directory, 'virtiofsd.log'), VIRTIOFSD, [
    `--socket-path=${socket}`,
    ...['source=/', 'cache=always', 'sandbox=chroot'].flatMap((option) => ['-o', option]),
  ]);
  await waitFor('virtiofsd', () => existsSync(socket));
  const qemu = spawn(
    'qemu-system-x86_64',
    [
      ...['-accel', 'tcg,thread=multi', '-cpu', 'max', '-smp', '2', '-m', MEMORY],
      ...['-display', 'none', '-no-reboot', '-nodefaults'],
      ...['-kernel', kernel.image, '-initrd', initramfs],
      ...['-append', 'console=ttyS0 quiet panic=1 tsc=unstable'],
      ...['-object', `memory-backend-memfd,id=memory,size=${MEMORY},share=on`, '-numa', 'node,memdev=memory'],
      ...['-chardev', `socket,id=root,path=${socket}`],
      ...['-device', 'vhost-user-fs-pci,chardev=root,tag=root'],
      ...['-serial', 'stdio', '-serial', `file:${report}`],
    ],
    { stdio: ['ignore', 'pipe', 'inherit'] },
  );
  const console_ = createWriteStream(job.consolePath);
  qemu.stdout.on('data', (chunk: Buffer) => {
    console_.write(chunk);
    job.onOutput?.(chunk.toString());
  });
  const timer = setTimeout(() => qemu.kill('SIGKILL'), job.timeoutMs);
  try {
    await new Promise<void>((resolve, reject) => {
      qemu.once('error', reject);
      qemu.once('close', () => resolve());
    });
  } finally {
    clearTimeout(timer);
    await files.stop();
    rmSync(socket, { force: true });
    await new Promise((resolve) => console_.end(resolve));
  }
  return readFileSync(job.consolePath, 'utf8').includes(BEGUN);
}

async function buildInitramfs(kernel: Kernel, directory: string, script: string): Promise<string> {
  const root = join(directory, 'initramfs');
  for (const folder of ['bin', 'proc', 'sys', 'dev', 'lower', 'new', 'modules', 'tmp']) {
    mkdirSync(join(root, folder), { recursive: true });
  }
  await run('cp', ['/bin/busybox', join(root, 'bin/busybox')]);
  const modules: string[] = [];
  for (const file of await moduleFiles(kernel, BOOT_MODULES)) {
    const name = basename(file).replace(/\.xz$/, '');
    await run('sh', [
      '-c',
      file.endsWith('.xz') ? `xz -dc '${file}' >"$0"` : `cp '${file}' "$0"`,
      join(root, 'modules', name),
    ]);
    modules.push(name);
  }
  writeFileSync(join(root, 'init'), init(kernel, modules), { mode: 0o755 });
  writeFileSync(join(root, 'script'), script);
  const path = `${root}.gz`;
  await run('sh', ['-c', `cd '${root}' && find . | cpio --quiet -o -H newc | gzip -1 >'${path}'`]);
  return path;
}

/** The guest's /tmp is its own: a checkout below the machine's is put there. */
const OWN_CHECKOUT = `mkdir -p /new${ROOT} /tmp/upper2 /tmp/work2
mount -t overlay -o lowerdir=/lower${ROOT},upperdir=/tmp/upper2,workdir=/tmp/work2 overlay /new${ROOT}`;

/** Mounts the machine's root under an overlay, and what a running system has besides. */
function init({ root, release }: Kernel, modules: readonly string[]): string {
  return `#!/bin/busybox sh
/bin/busybox --install -s /bin
export PATH=/bin
mount -t proc proc /proc
mount -t sysfs sysfs /sys
mount -t devtmpfs devtmpfs /dev
for module in ${modules.join(' ')}; do insmod /modules/$module; done
mount -t virtiofs -o ro root /lower
mount -t tmpfs -o size=60% tmpfs /tmp
mkdir /tmp/upper /tmp/work
mount -t overlay -o lowerdir=/lower,upperdir=/tmp/upper,workdir=/tmp/work overlay /new
mount -t proc proc /new/proc
mount -t sysfs sysfs /new/sys
mount -t devtmpfs devtmpfs /new/dev
mkdir -p /new/dev/pts /new/dev/shm
ln -s /proc/self/fd /new/dev/fd
mount -t devpts devpts /new/dev/pts
mount -t tmpfs tmpfs /new/run
mkdir /new/run/netns
mount -t tmpfs -o size=50% tmpfs /new/tmp
${ROOT.startsWith('/tmp/') ? OWN_CHECKOUT : ''}
mount -t cgroup2 cgroup2 /new/sys/fs/cgroup
ln -sfn ${root}/lib/modules/${release} /new/lib/modules/${release}
cp /script /new/run/script
exec switch_root /new /bin/bash -c '
export PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin HOME=/root TERM=dumb
ip link set lo up
echo "${BEGUN}"
bash /run/script
code=$?
stty -F /dev/ttyS1 raw
{ cat /run/report 2>/dev/null; echo; echo "end of report $code"; } >/dev/ttyS1
sync
echo o >/proc/sysrq-trigger
sleep 10'
`;
}
