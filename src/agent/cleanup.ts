/**
 * Leaves the node as it was found. Needs no memory of what was done in the kernel: rules and routes are known by their
 * protocol, the table by its name, a service of IPVS by its destination's weight, programs and maps by their pins. Written
 * down were sysctls, and the chain of CNI plugins.
 */

import { execFile } from 'node:child_process';
import { existsSync, readdirSync, readFileSync, rmdirSync, rmSync } from 'node:fs';
import { join } from 'node:path';
import { promisify } from 'node:util';
import { CNI_RULE_NAME } from '../api/cni-rule.js';
import { CniError } from '../cni/errors.js';
import type { Restored } from '../cni/restore.js';
import { type UninstallOptions, uninstall } from '../cni/uninstall.js';
import { MANIFEST } from '../datapath/manifest.js';
import { removeSplice } from '../datapath/splice-removal.js';
import type { Attachment, Attachments } from '../kernel/attachment.js';
import { CgroupLinks } from '../kernel/cgroup-links.js';
import { CgroupTree } from '../kernel/cgroups.js';
import { ClsactFilters } from '../kernel/clsact.js';
import { familiesKnown } from '../kernel/families.js';
import { removeIpvsServices } from '../kernel/ipvs.js';
import { RouteSocket } from '../kernel/netlink.js';
import { removeTable } from '../kernel/notrack-table.js';
import {
  layoutVersion,
  pinFolders,
  pinnedVersions,
  refuseNewerLayout,
  versionFolder,
} from '../kernel/pins.js';
import { removePolicyRoutes } from '../kernel/policy-routes.js';
import { SocketLookup } from '../kernel/socket-lookup.js';
import { removeSteeringLink } from '../kernel/steering-link.js';
import { InterfaceSysctls } from '../kernel/sysctls.js';
import { TcxLinks } from '../kernel/tcx.js';

export interface CleanupOptions {
  readonly runDir: string;
  readonly bpffs: string;
  /** Folder with the compiled objects: they say which layouts are ours to take away. */
  readonly objects: string;
  readonly procSys: string;
  readonly cni: UninstallOptions;
}

export interface CleanupReport {
  /** What was found and taken away, in words. */
  readonly removed: readonly string[];
  /** What of ours had to stay, and why; the rest was taken away all the same. */
  readonly problems: readonly string[];
}

/**
 * Takes away all that is ours on the node. DatapathError LAYOUT_NEWER where a newer agent left things; else what a
 * step threw.
 */
export async function cleanup(options: CleanupOptions): Promise<CleanupReport> {
  refuseNewerLayout(options.bpffs, layoutVersion(options.objects, MANIFEST.main));
  // Before anything else: as long as the plugin is in the chain, pods wait for an agent that is gone.
  const { removed, problems } = removePlugin(options);
  const socket = new RouteSocket();
  try {
    removed.push(...(await removeSplice(options.bpffs, options.objects)));
    // Programs first: from here on nothing is marked, so nothing misses its route.
    removed.push(...(await detachAll(options, socket)));
    removed.push(...(await removePolicyRoutes(socket, familiesKnown())));
    removed.push(...(await removeTable()));
    removed.push(...(await removeSteeringLink(socket)));
    removed.push(...(await removeIpvsServices()));
    removed.push(...new InterfaceSysctls(options.runDir, options.procSys).restore());
    removed.push(...(await removePins(options.bpffs)));
  } finally {
    socket.close();
  }
  return { removed, problems };
}

/** A configuration that cannot be written names our plugin still, which then has to stay: without it no pod starts. */
function removePlugin({ cni, runDir }: CleanupOptions): { removed: string[]; problems: string[] } {
  try {
    const { files, binary } = uninstall(cni);
    rmSync(join(runDir, CNI_RULE_NAME), { force: true });
    const removed = files.flatMap((file) => describe(file) ?? []);
    return { removed: [...removed, ...(binary.change === 'removed' ? [binary.path] : [])], problems: [] };
  } catch (error) {
    if (error instanceof CniError) {
      return { removed: [], problems: [`the CNI plugin is still installed: ${error.message}`] };
    }
    throw error;
  }
}

function describe({ path, change }: Restored): string | undefined {
  switch (change) {
    case 'restored':
      return `CNI plugin from ${path}, which is as it was before, byte for byte`;
    case 'entry-removed':
      return `CNI plugin from ${path}`;
    case 'removed':
      return path;
    case 'left':
    case 'gone':
      return undefined;
  }
}

async function detachAll({ bpffs }: CleanupOptions, socket: RouteSocket): Promise<string[]> {
  const names = new Map((await socket.links()).map((link) => [link.index, link.name]));
  const told = ({ role, ifindex }: Attachment) =>
    `program ${role} at ${names.get(ifindex) ?? `ifindex ${ifindex} (gone)`}`;
  const removed: string[] = [];
  for (const { links } of pinnedVersions(bpffs).map((version) => pinFolders(bpffs, version))) {
    if (new SocketLookup(links, MANIFEST.programs.socket_lookup.role).detach()) {
      removed.push('program for socket lookup');
    }
    const role = MANIFEST.programs.identity_option.role;
    const options = new CgroupLinks(MANIFEST, links, role, new CgroupTree());
    for (const cgroup of options.list()) {
      options.detach(cgroup);
      removed.push(`program ${role} at cgroup ${cgroup}`);
    }
    removed.push(...detachEach(new TcxLinks(MANIFEST, links)).map(told));
  }
  // Nothing is pinned for a filter, so nothing but the filters themselves tells of them.
  const filters = new ClsactFilters(MANIFEST);
  filters.adopt([...names.keys()]);
  removed.push(...detachEach(filters).map(told));
  return removed;
}

function detachEach(attachments: Attachments): Attachment[] {
  const found = attachments.list();
  for (const attachment of found) {
    attachments.detach(attachment);
  }
  return found;
}

async function removePins(bpffs: string): Promise<string[]> {
  const removed: string[] = [];
  for (const root of pinnedVersions(bpffs).map((version) => versionFolder(bpffs, version))) {
    for (const folder of readdirSync(root)) {
      for (const pin of readdirSync(join(root, folder))) {
        rmSync(join(root, folder, pin));
        removed.push(`pin ${folder}/${pin}`);
      }
      rmdirSync(join(root, folder));
    }
    rmdirSync(root);
  }
  if (isMountPoint(bpffs)) {
    await promisify(execFile)('umount', [bpffs]);
    removed.push(`bpffs mounted at ${bpffs}`);
  } else if (existsSync(bpffs) && readdirSync(bpffs).length === 0) {
    rmdirSync(bpffs);
  }
  return removed;
}

/** Only our own mount: the agent mounts at its folder where that is not below /sys/fs/bpf. */
function isMountPoint(path: string): boolean {
  return readFileSync('/proc/self/mounts', 'utf8')
    .split('\n')
    .some((line) => {
      const [, target, type] = line.split(' ');
      return type === 'bpf' && target === path;
    });
}
