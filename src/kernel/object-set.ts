/**
 * What a set of BPF objects is made of, as loading, pinning, attaching and migrating have to know it. Which programs
 * and maps these are, and what for, is said by whoever brings the set: src/datapath/manifest.ts.
 */

import type { BpfObject } from '../native/bpf.js';

export type Hook = 'ingress' | 'egress';

/**
 * Where a program runs. The role names the pins of its links: `<role>-<ifindex>` or `<role>-<cgroup>`, or `<role>` where
 * there is one.
 */
export type ProgramSpec = {
  /** Object file without `.bpf.o`; one program stands in each. */
  readonly object: string;
} & (
  | {
      readonly runs: 'per-interface';
      readonly role: string;
      /** Of tc at the interface: what it has received, or what it is about to send. */
      readonly hook: Hook;
      /** The map that its state stands in, keyed by ifindex: without a row there a migration leaves the old program. */
      readonly rowIn?: string;
    }
  | { readonly runs: 'per-namespace'; readonly role: string }
  | { readonly runs: 'per-cgroup'; readonly role: string }
  | { readonly runs: 'on-demand' }
);

/**
 * What becomes of a map when its layout has changed. copied: its entries are taken over by field name. begun anew:
 * nothing rests on them. A map whose layout is the same serves on, unless it is never shared: the kernel keeps no types
 * for it that could be compared.
 */
export interface MapSpec {
  readonly onNewLayout: 'copied' | 'begun-anew';
  readonly neverShared?: true;
  /** An agent of an earlier release did not have it: where it is missing, nothing has been lost. */
  readonly mayBeMissing?: true;
  /** Programs write it all the time: copied while links are being exchanged, and once more after. */
  readonly writtenByPrograms?: true;
}

export interface ObjectSet {
  /** The object that is asked for the layout's version and for the shape of every map. */
  readonly main: string;
  /** In the order in which a migration exchanges them: what stands behind the entrance first. */
  readonly programs: Readonly<Record<string, ProgramSpec>>;
  /** Every object declares all of them. */
  readonly maps: Readonly<Record<string, MapSpec>>;
  /** Reads the structs from a loaded object's BTF. DatapathError LAYOUT_MISMATCH where one is not as expected. */
  readonly readLayouts: (object: BpfObject) => unknown;
}

export type ProgramName<S extends ObjectSet> = keyof S['programs'] & string;
export type MapName<S extends ObjectSet> = keyof S['maps'] & string;

/** In the order of the set. */
export function programNames<S extends ObjectSet>(set: S): ProgramName<S>[] {
  return Object.keys(set.programs) as ProgramName<S>[];
}

/** In the order of the set. */
export function mapNames<S extends ObjectSet>(set: S): MapName<S>[] {
  return Object.keys(set.maps) as MapName<S>[];
}

/** Program by role, for those that run at interfaces. */
export function interfaceRoles(set: ObjectSet): ReadonlyMap<string, string> {
  return new Map(
    Object.entries(set.programs).flatMap(([name, spec]) =>
      spec.runs === 'per-interface' ? [[spec.role, name] as const] : [],
    ),
  );
}

/** The hook of tc at which programs of a role run. */
export function hookOf(set: ObjectSet, role: string): Hook {
  for (const spec of Object.values(set.programs)) {
    if (spec.runs === 'per-interface' && spec.role === role) {
      return spec.hook;
    }
  }
  throw new RangeError(`no program has the role ${role}`);
}

/** The name under which a link is pinned. */
export function linkPin(role: string, ifindex?: number): string {
  return ifindex === undefined ? role : `${role}-${ifindex}`;
}

export interface PinnedLink {
  readonly program: string;
  readonly role: string;
  /** Undefined for the link of the whole network namespace. */
  readonly ifindex: number | undefined;
  /** The number of a cgroup, for a link of one. */
  readonly cgroup?: number;
}

/** What a link of this pin name runs, and where; undefined where the set calls no link so. */
export function parseLinkPin(set: ObjectSet, pin: string): PinnedLink | undefined {
  for (const [program, spec] of Object.entries(set.programs)) {
    if (spec.runs === 'per-namespace' && pin === spec.role) {
      return { program, role: spec.role, ifindex: undefined };
    }
    if (spec.runs !== 'per-interface' && spec.runs !== 'per-cgroup') {
      continue;
    }
    const { role } = spec;
    const text = pin.startsWith(`${role}-`) ? pin.slice(role.length + 1) : '';
    if (/^\d+$/.test(text)) {
      const number = Number(text);
      return spec.runs === 'per-cgroup'
        ? { program, role, ifindex: undefined, cgroup: number }
        : { program, role, ifindex: number };
    }
  }
  return undefined;
}
