/** The kernel by our own means, which the container has as well. Nothing is changed, and no agent is needed. */

import { readFileSync } from 'node:fs';
import { join } from 'node:path';
import { MANIFEST } from '../datapath/manifest.js';
import { CLSACT, ClsactFilters } from '../kernel/clsact.js';
import { familiesKnown } from '../kernel/families.js';
import { RouteSocket } from '../kernel/netlink.js';
import { pinFolders, pinnedVersions, pinsIn } from '../kernel/pins.js';
import { TcxLinks } from '../kernel/tcx.js';
import {
  BpfLink,
  BpfMap,
  BpfProgram,
  programInfo,
  queryClsact,
  queryTcx,
  tcxSupported,
} from '../native/bpf.js';
import { unlessGone } from '../native/errors.js';
import { tcpListeners } from '../native/sockets.js';
import type { Link } from '../net/link.js';
import { asJson, type Part, reasonOf, type Taken } from './part.js';

export function kernelView(bpffs: string, procSys: string): Part[] {
  const part = (name: string, from: string, take: Part['take']): Part => ({
    name: `kernel/${name}`,
    from,
    format: name.endsWith('.json') ? 'json' : 'text',
    take,
  });
  return [
    part('rules.json', 'rtnetlink: rules', () => byFamily((socket, family) => socket.rules(family))),
    part('routes.json', 'rtnetlink: routes of every table', () => byFamily(routes)),
    part('links.json', 'rtnetlink: links', async () => asJson(await withSocket((socket) => socket.links()))),
    part('attached.json', 'bpf(2): programs at the interfaces that ours are at, in their order', async () =>
      asJson((await attachedInterfaces(bpffs)).map(programsAt)),
    ),
    part('pins.json', `bpf(2): what is pinned below ${bpffs}`, () => asJson(pins(bpffs))),
    part('listeners.json', 'sock_diag: listening TCP sockets', () => asJson(tcpListeners())),
    part('sysctls.txt', `${procSys}/net, what interception depends on`, () => sysctls(bpffs, procSys)),
  ];
}

async function withSocket<T>(ask: (socket: RouteSocket) => Promise<T>): Promise<T> {
  const socket = new RouteSocket();
  try {
    return await ask(socket);
  } finally {
    socket.close();
  }
}

function byFamily(ask: (socket: RouteSocket, family: 4 | 6) => Promise<unknown>): Promise<Taken> {
  return withSocket(async (socket) => {
    const found: Record<string, unknown> = {};
    for (const family of familiesKnown()) {
      found[`IPv${family}`] = await ask(socket, family);
    }
    return asJson(found);
  });
}

async function routes(socket: RouteSocket, family: 4 | 6): Promise<Record<string, unknown>> {
  const tables = new Set((await socket.routes(family)).map(({ table }) => table));
  return Object.fromEntries([...tables].map((table) => [table, socket.tableRoutes(family, table)]));
}

/** That programs of ours are at, by pins and by filters. */
export function attachedInterfaces(bpffs: string): Promise<Link[]> {
  return withSocket(async (socket) => {
    const links = await socket.links();
    const filters = new ClsactFilters(MANIFEST);
    filters.adopt(links.map(({ index }) => index));
    const pinned = pinnedVersions(bpffs).flatMap((version) =>
      new TcxLinks(MANIFEST, pinFolders(bpffs, version).links).list(),
    );
    const ours = new Set([...filters.list(), ...pinned].map(({ ifindex }) => ifindex));
    return links.filter(({ index }) => ours.has(index));
  });
}

function programsAt({ name, index }: Link): object {
  const at = (direction: 'ingress' | 'egress') => {
    const tcx = tcxSupported() ? (unlessGone(() => queryTcx(index, direction)) ?? []) : [];
    const filter = unlessGone(() => queryClsact(index, direction, CLSACT));
    const told = ({ programId }: { programId: number }) => programInfo(programId) ?? { id: programId };
    return { tcx: tcx.map(told), filter: filter === undefined ? null : told(filter) };
  };
  return { interface: name, ifindex: index, ingress: at('ingress'), egress: at('egress') };
}

function pins(bpffs: string): object {
  return Object.fromEntries(
    pinnedVersions(bpffs).map((version) => {
      const folders = pinFolders(bpffs, version);
      const described = {
        maps: each(
          folders.maps,
          (path) => BpfMap.openPinned(path),
          (map) => {
            const { type, keySize, valueSize, maxEntries } = map.shape();
            return { id: map.id, type, keySize, valueSize, maxEntries };
          },
        ),
        programs: each(
          folders.programs,
          (path) => BpfProgram.openPinned(path),
          ({ id, name, tag }) => ({ id, name, tag }),
        ),
        links: each(
          folders.links,
          (path) => BpfLink.openPinned(path),
          ({ id, programId }) => ({ id, programId }),
        ),
      };
      return [`v${version}`, described];
    }),
  );
}

/** One that cannot be opened says why in its place. */
function each<T extends { close(): void }>(
  folder: string,
  open: (path: string) => T,
  describe: (handle: T) => object,
): object {
  const told = pinsIn(folder).map((name) => {
    try {
      const handle = open(join(folder, name));
      try {
        return [name, describe(handle)];
      } finally {
        handle.close();
      }
    } catch (error) {
      return [name, { problem: reasonOf(error) }];
    }
  });
  return Object.fromEntries(told) as object;
}

const SYSCTLS = [
  'ipv4/ip_forward',
  'ipv4/fwmark_reflect',
  'ipv4/tcp_fwmark_accept',
  'ipv4/tcp_l3mdev_accept',
  'ipv4/ip_local_port_range',
  'ipv4/ip_nonlocal_bind',
  'ipv6/conf/all/forwarding',
  'ipv6/conf/all/disable_ipv6',
  'ipv6/fwmark_reflect',
  'bridge/bridge-nf-call-iptables',
  'bridge/bridge-nf-call-ip6tables',
  'core/bpf_jit_enable',
  'netfilter/nf_conntrack_max',
  'netfilter/nf_conntrack_count',
] as const;
const OF_INTERFACES = [
  'rp_filter',
  'src_valid_mark',
  'accept_local',
  'route_localnet',
  'forwarding',
] as const;

async function sysctls(bpffs: string, procSys: string): Promise<Taken> {
  const interfaces = ['all', 'default', 'lo', ...(await attachedInterfaces(bpffs)).map(({ name }) => name)];
  const names = [
    ...SYSCTLS,
    ...interfaces.flatMap((name) => OF_INTERFACES.map((setting) => `ipv4/conf/${name}/${setting}`)),
  ];
  const lines = names.map((name) => `net/${name} = ${setting(join(procSys, 'net', name))}`);
  return { text: `${lines.join('\n')}\n`, note: '' };
}

function setting(path: string): string {
  try {
    return readFileSync(path, 'utf8').trim();
  } catch (error) {
    return `(${(error as NodeJS.ErrnoException).code ?? reasonOf(error)})`;
  }
}
