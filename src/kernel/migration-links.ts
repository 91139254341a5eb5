/** The last step of a migration: every link gets its new program, at once and in the order of the set, then its pin. */

import { existsSync, renameSync, rmSync } from 'node:fs';
import { join } from 'node:path';
import { BpfLink, type BpfMap, type BpfProgram } from '../native/bpf.js';
import { isKernelError, unlessGone } from '../native/errors.js';
import { ClsactFilters } from './clsact.js';
import { interfaceRoles, type ObjectSet, type PinnedLink, parseLinkPin, programNames } from './object-set.js';
import { pinFolders, pinsIn } from './pins.js';
import { u32 } from './struct.js';

interface Exchange {
  readonly set: ObjectSet;
  readonly maps: Readonly<Record<string, BpfMap>>;
  readonly programs: Readonly<Record<string, BpfProgram>>;
}

interface LinkExchange extends Exchange {
  readonly bpffs: string;
  readonly version: number;
  readonly older: readonly number[];
}

interface OpenLink {
  readonly from: string;
  readonly to: string;
  readonly name: string;
  readonly link: BpfLink;
  readonly at: PinnedLink;
}

/**
 * Exchanges the programs of all links one right after the other, then moves the pins. A link whose interface has no row
 * in our maps keeps its program, which holds the maps it needs: the reconciler exchanges it when it has written one.
 * Returns how many have been exchanged, and the pins of those that were not.
 */
export function moveLinks(exchange: LinkExchange): {
  readonly moved: number;
  readonly kept: readonly string[];
} {
  const opened = openLinks(exchange);
  try {
    const kept = opened.filter(({ at }) => !hasRow(exchange, at.program, at.ifindex));
    // Nothing else in between: what the old entrance records now, the new steering behind it does not know.
    const gone = opened.filter((entry) => !kept.includes(entry) && !exchangeProgram(exchange, entry));
    for (const entry of opened) {
      if (gone.includes(entry) || existsSync(entry.to)) {
        rmSync(entry.from, { force: true });
      } else {
        renameSync(entry.from, entry.to);
      }
    }
    return { moved: opened.length - gone.length - kept.length, kept: kept.map(({ name }) => name) };
  } finally {
    for (const { link } of opened) {
      link.close();
    }
  }
}

/** The same for the filters of a kernel without tcx, found at `interfaces`. Returns how many. */
export function moveFilters(exchange: Exchange, interfaces: readonly number[]): number {
  const { set, programs } = exchange;
  const filters = new ClsactFilters(set);
  filters.adopt(interfaces);
  const order = programNames(set);
  const program = (role: string) => interfaceRoles(set).get(role) ?? '';
  const ours = filters
    .list()
    .filter(({ role, ifindex }) => hasRow(exchange, program(role), ifindex))
    .sort((a, b) => order.indexOf(program(a.role)) - order.indexOf(program(b.role)));
  for (const attachment of ours) {
    unlessGone(() => filters.attach(attachment, programs[program(attachment.role)] as BpfProgram));
  }
  return ours.length;
}

/** Whether the state that a program needs at an interface is in our maps. */
function hasRow({ set, maps }: Exchange, program: string, ifindex: number | undefined): boolean {
  const spec = set.programs[program];
  const rowIn = spec?.runs === 'per-interface' ? spec.rowIn : undefined;
  return rowIn === undefined || ifindex === undefined || maps[rowIn]?.get(u32(ifindex)) !== undefined;
}

/** False where the interface has gone, and the link with it. */
function exchangeProgram({ programs }: Exchange, { link, at }: OpenLink): boolean {
  return (
    unlessGone(() => {
      link.update(programs[at.program] as BpfProgram);
      return true;
    }) === true
  );
}

function openLinks({ set, bpffs, version, older }: LinkExchange): OpenLink[] {
  const found: OpenLink[] = [];
  for (const old of older) {
    const folder = pinFolders(bpffs, old).links;
    for (const name of pinsIn(folder)) {
      const at = parseLinkPin(set, name);
      const link = at === undefined ? undefined : openLink(join(folder, name));
      // One of a kind that we have no more goes with the folder.
      if (at !== undefined && link !== undefined) {
        const to = join(pinFolders(bpffs, version).links, name);
        found.push({ from: join(folder, name), to, name, link, at });
      }
    }
  }
  const order: readonly string[] = programNames(set);
  return found.sort((a, b) => order.indexOf(a.at.program) - order.indexOf(b.at.program));
}

/** Undefined for what somebody else has put there. */
function openLink(path: string): BpfLink | undefined {
  try {
    return BpfLink.openPinned(path);
  } catch (error) {
    if (isKernelError(error) && error.code === 'EINVAL') {
      return undefined;
    }
    throw error;
  }
}
