/** Programs of others at tc ingress of pods' interfaces and their bridges: the hook that we share. */

import { CLSACT } from '../kernel/clsact.js';
import { type ProgramInfo, programInfo, queryTcx, tcxSupported } from '../native/bpf.js';
import { isKernelError } from '../native/errors.js';
import { type Finding, ok, warn } from './check.js';
import { type Command, isMissing, some } from './system.js';

const OURS: ReadonlySet<string> = new Set(['pod_egress', 'bridge_steer', 'inbound_steer']);

export interface HookLink {
  readonly index: number;
  readonly name: string;
  readonly kind: string;
  readonly master: number;
}

/** What the kernel says of the hook; a parameter so that kernels without tcx can be tested. */
export interface HookKernel {
  tcxSupported(): boolean;
  queryTcx(ifindex: number, direction: 'ingress'): readonly { readonly programId: number }[];
  programInfo(id: number): Pick<ProgramInfo, 'name'> | undefined;
}

interface Neighbour {
  readonly what: string;
  readonly order: 'before' | 'after';
}

/** tcx links run first, in their order; then the filters of clsact, by priority. */
export async function hookFindings(
  links: readonly HookLink[],
  command: Command,
  kernel: HookKernel = { tcxSupported, queryTcx, programInfo },
): Promise<Finding[]> {
  const tcx = kernel.tcxSupported();
  const shared = podInterfaces(links);
  const filters = await filtersAt(shared, command);
  const places = new Map<string, { neighbour: Neighbour; names: string[] }>();
  for (const link of shared) {
    const neighbours = [
      ...(tcx ? tcxNeighbours(link, kernel) : []),
      ...clsactNeighbours(filters.get(link.name) ?? [], tcx),
    ];
    for (const neighbour of neighbours) {
      const key = `${neighbour.order} ${neighbour.what}`;
      const place = places.get(key) ?? { neighbour, names: [] };
      place.names.push(link.name);
      places.set(key, place);
    }
  }
  return places.size === 0
    ? [ok(`none at ${shared.length} veths and bridges`)]
    : [...places.values()].map(({ neighbour: { what, order }, names }) =>
        order === 'before'
          ? warn(
              `${what} at ${some(names)} runs before ours`,
              'see that it passes on what it does not handle itself (TCX_NEXT, TC_ACT_UNSPEC); else nothing is intercepted',
            )
          : ok(`${what} at ${some(names)} runs after ours: intercepted packets do not reach it`),
      );
}

/** Veths, and the bridges that they are ports of. */
export function podInterfaces<T extends HookLink>(links: readonly T[]): T[] {
  const veths = links.filter(({ kind }) => kind === 'veth');
  const masters = new Set(veths.map(({ master }) => master));
  return [...veths, ...links.filter(({ index, kind }) => kind === 'bridge' && masters.has(index))];
}

/** A link of ours that is still to come goes behind those that are there. */
function tcxNeighbours(link: HookLink, kernel: HookKernel): Neighbour[] {
  const names = attached(link, kernel).map(
    ({ programId }) => kernel.programInfo(programId)?.name ?? `program ${programId}`,
  );
  const ours = names.findIndex((name) => OURS.has(name));
  return names.flatMap((name, place): Neighbour[] =>
    place === ours ? [] : [{ what: name, order: ours === -1 || place < ours ? 'before' : 'after' }],
  );
}

/** Interfaces may go at any moment. */
function attached(link: HookLink, kernel: HookKernel): readonly { readonly programId: number }[] {
  try {
    return kernel.queryTcx(link.index, 'ingress');
  } catch (error) {
    if (isKernelError(error) && error.code === 'ENODEV') {
      return [];
    }
    throw error;
  }
}

interface Filter {
  readonly pref: number;
  readonly kind: string;
  readonly options?: { readonly prog?: { readonly name?: string } };
}

function clsactNeighbours(filters: readonly Filter[], tcx: boolean): Neighbour[] {
  const byPriority = new Map<number, string>();
  for (const { pref, kind, options } of filters) {
    const program = options?.prog?.name;
    if (pref !== CLSACT.priority || !OURS.has(program ?? '')) {
      byPriority.set(pref, program ?? byPriority.get(pref) ?? kind);
    }
  }
  const ours = filters.some(({ options }) => OURS.has(options?.prog?.name ?? ''));
  if (ours && !tcx) {
    byPriority.delete(CLSACT.priority); // tc lists a filter's protocol and priority once more, without its program
  }
  return [...byPriority].map(([pref, name]) => ({
    what: `tc filter ${name} (priority ${pref})`,
    order: tcx || pref > CLSACT.priority ? 'after' : 'before',
  }));
}

async function filtersAt(
  links: readonly HookLink[],
  command: Command,
): Promise<ReadonlyMap<string, readonly Filter[]>> {
  const filters = new Map<string, readonly Filter[]>();
  let qdiscs: readonly { readonly kind: string; readonly dev?: string }[];
  try {
    qdiscs = JSON.parse(await command('tc', ['-j', 'qdisc', 'show']));
  } catch (error) {
    if (isMissing(error)) {
      return filters;
    }
    throw error;
  }
  const names = new Set(links.map(({ name }) => name));
  for (const { kind, dev } of qdiscs) {
    if (dev !== undefined && names.has(dev) && (kind === 'clsact' || kind === 'ingress')) {
      filters.set(dev, await filtersOf(dev, command));
    }
  }
  return filters;
}

async function filtersOf(dev: string, command: Command): Promise<readonly Filter[]> {
  try {
    return JSON.parse(await command('tc', ['-j', 'filter', 'show', 'dev', dev, 'ingress'])) as Filter[];
  } catch (error) {
    if (error instanceof Error && error.message.includes('Cannot find device')) {
      return [];
    }
    throw error;
  }
}
