/** The parts of the datapath that a node has once: rules and routes, the nftables table, IPVS, socket lookup, pins. */

import { isDeepStrictEqual } from 'node:util';
import type { Log } from '../base/log.js';
import type { EndpointTables } from '../datapath/endpoints.js';
import type { InboundSteering } from '../datapath/inbound.js';
import type { InstanceSlots } from '../datapath/instance-slots.js';
import type { DatapathPrograms } from '../datapath/manifest.js';
import type { PortSet } from '../datapath/port-set.js';
import { DatapathError } from '../kernel/errors.js';
import { type FamilyOff, familiesOn } from '../kernel/families.js';
import type { IpvsBypass } from '../kernel/ipvs.js';
import type { NotrackTable } from '../kernel/notrack-table.js';
import type {
  PolicyRoutesOptions,
  PolicyRoutesReport,
  PolicyRoutesSettings,
} from '../kernel/policy-routes.js';
import type { SocketLookup } from '../kernel/socket-lookup.js';
import type { Family } from '../net/family.js';
import { Contested } from './contested.js';
import type { RepairKind, Repairs } from './repairs.js';

/** Looks at the other maps for one at the counters and at what selections say: the largest maps and the least urgent. */
const RECOUNT_EVERY = 10;

export interface NodeStateOptions {
  readonly routes: {
    ensure(options: PolicyRoutesOptions): Promise<PolicyRoutesReport>;
    /** Whether a marked packet is delivered by our table now. */
    areFollowed(families: readonly Family[]): Promise<boolean>;
  };
  /** Families that the node does not have now. */
  readonly familiesOff: () => readonly FamilyOff[];
  readonly notrack: Pick<NotrackTable, 'ensure' | 'change'>;
  readonly ipvs: Pick<IpvsBypass, 'ensure'>;
  readonly inbound: Pick<InboundSteering, 'ensure'>;
  readonly programs: Pick<DatapathPrograms, 'programs' | 'ensurePins'>;
  readonly tables: Pick<EndpointTables, 'refresh' | 'recount'>;
  /** Of those, and of the agent's own port. */
  readonly portSets: readonly Pick<PortSet, 'ensure'>[];
  readonly slots: Pick<InstanceSlots, 'ensure'>;
  readonly lookup: Pick<SocketLookup, 'attach'>;
  readonly settings: Pick<PolicyRoutesSettings, 'table' | 'rulePriority'>;
  readonly repairs: Pick<Repairs, 'note'>;
  readonly log: Pick<Log, 'info' | 'warn' | 'error'>;
}

export class NodeState {
  readonly #options: NodeStateOptions;
  /** Whose routing table was free when we came to it: what others have put into it since is taken out again. */
  #ours: ReadonlySet<Family> = new Set();
  #familiesOff: readonly FamilyOff[] = [];
  /** From the first time that everything was in place, whatever has to be put there is a repair. */
  #wasComplete = false;
  #problem: string | undefined = 'the first round has not run yet';
  #addresses: ReadonlySet<string> = new Set();
  #looks = 0;
  readonly #contested = new Contested();
  /** In this look. */
  #repaired = new Set<string>();

  constructor(options: NodeStateOptions) {
    this.#options = options;
  }

  /** Why the node-wide parts are not in place; undefined when they are. */
  problem(): string | undefined {
    return this.#problem;
  }

  /** Families that the node did not have at the last look: no part of its datapath is there for them, nor missed. */
  familiesOff(): readonly FamilyOff[] {
    return this.#familiesOff;
  }

  /**
   * Compares everything with what is wanted, and puts right what differs. `addresses`: those of intercepted pods. Never
   * rejects: what could not be put in place is told by `problem`.
   */
  async ensure(addresses: ReadonlySet<string>): Promise<void> {
    this.#repaired = new Set();
    try {
      this.#lookAtFamilies();
      try {
        await this.#ensure(addresses);
      } finally {
        this.#contested.note(this.#repaired);
      }
      const contested = this.#contested.list();
      if (contested.length > 0) {
        throw new DatapathError(
          'CONTESTED',
          `${contested.join(', ')}: had to be put back again and again, for something on this node takes it away`,
        );
      }
      if (!(await this.#options.routes.areFollowed(familiesOn(this.#familiesOff)))) {
        throw new DatapathError('RULE_CONFLICT', this.#notFollowed());
      }
      this.#problem = undefined;
      this.#wasComplete = true;
    } catch (error) {
      const message = error instanceof Error ? error.message : String(error);
      if (this.#problem !== message) {
        this.#options.log.error({ err: error }, 'the node-wide parts of the datapath are not in place');
      }
      this.#problem = message;
    }
  }

  /** Between two looks at everything: only the addresses have changed. */
  async addresses(addresses: ReadonlySet<string>): Promise<void> {
    const before = this.#addresses;
    const isSame = addresses === before;
    const add = isSame ? [] : [...addresses].filter((ip) => !before.has(ip));
    const remove = isSame ? [] : [...before].filter((ip) => !addresses.has(ip));
    if (this.#options.notrack.change({ add, remove })) {
      this.#addresses = addresses;
    } else {
      await this.ensure(addresses);
    }
  }

  /** Pins are for the next agent, the rest is for the traffic: where pinning fails, that is told when the rest is there. */
  async #ensure(addresses: ReadonlySet<string>): Promise<void> {
    const notPinned = this.#ensurePins();
    await this.#ensureRest(addresses).catch((error: unknown) => {
      throw notPinned?.error ?? error;
    });
    if (notPinned !== undefined) {
      throw notPinned.error;
    }
  }

  async #ensureRest(addresses: ReadonlySet<string>): Promise<void> {
    const { routes, notrack, ipvs, inbound, programs, tables, slots, portSets, lookup } = this.#options;
    this.#looks += 1;
    const isThorough = this.#looks % RECOUNT_EVERY === 0;
    const wrong = [
      ...tables.refresh(isThorough),
      ...slots.ensure(),
      ...portSets.flatMap((set) => set.ensure()),
    ];
    for (const what of wrong) {
      this.#put('map', what);
    }
    if (isThorough) {
      await tables.recount();
    }
    const families = familiesOn(this.#familiesOff);
    const { repaired } = await routes.ensure({ families, ours: this.#ours });
    const isNew = families.some((family) => !this.#ours.has(family));
    this.#ours = new Set(families);
    for (const what of repaired) {
      this.#put('policy-route', what, isNew);
    }
    for (const what of (await notrack.ensure(addresses)).repaired) {
      this.#put('nftables', what);
    }
    this.#addresses = addresses;
    for (const what of await ipvs.ensure(families)) {
      this.#put('ipvs', what);
    }
    for (const what of await inbound.ensure()) {
      this.#put('inbound', what);
    }
    const attached = lookup.attach(programs.programs.socket_lookup);
    if (attached !== 'kept') {
      this.#put('socket-lookup', `socket lookup ${attached}`);
    }
  }

  #ensurePins(): { readonly error: unknown } | undefined {
    try {
      for (const what of this.#options.programs.ensurePins()) {
        this.#put('pin', what);
      }
      return undefined;
    } catch (error) {
      return { error };
    }
  }

  #lookAtFamilies(): void {
    const [before, now] = [this.#familiesOff, this.#options.familiesOff()];
    if (isDeepStrictEqual(before, now)) {
      return; // the same list as before, for those who compare
    }
    this.#familiesOff = now;
    for (const { family, reason } of now.filter((off) => !before.some((other) => isEqual(off, other)))) {
      this.#options.log.warn({ family, reason }, `IPv${family} is off on this node: it is not intercepted`);
    }
    for (const { family } of before.filter((off) => !now.some((other) => other.family === off.family))) {
      this.#options.log.info({ family }, `IPv${family} is on again`);
    }
  }

  #notFollowed(): string {
    const { table, rulePriority } = this.#options.settings;
    return `packets with our mark are not delivered by table ${table}: a rule of somebody else's comes before priority ${rulePriority}`;
  }

  /** `isNew`: it was not missed before. */
  #put(kind: RepairKind, what: string, isNew = false): void {
    if (this.#wasComplete && !isNew) {
      this.#repaired.add(what);
      this.#options.repairs.note(kind, what, {}, !this.#contested.has(what));
    } else {
      this.#options.log.info({ kind, what }, 'put in place');
    }
  }
}

function isEqual(a: FamilyOff, b: FamilyOff): boolean {
  return a.family === b.family && a.reason === b.reason;
}
