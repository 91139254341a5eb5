/** The parts of the datapath that a node has once: rules and routes, the nftables table, socket lookup, pins. */

import type { Log } from '../base/log.js';
import type { EndpointTables } from '../datapath/endpoints.js';
import type { DatapathPrograms } from '../datapath/manifest.js';
import type { RouteSocket } from '../kernel/netlink.js';
import type { NotrackTable } from '../kernel/notrack-table.js';
import { ensurePolicyRoutes, marksAreDelivered, type PolicyRoutesSettings } from '../kernel/policy-routes.js';
import type { SocketLookup } from '../kernel/socket-lookup.js';
import type { RepairKind, Repairs } from './repairs.js';

export interface NodeStateOptions {
  readonly socket: RouteSocket;
  readonly notrack: NotrackTable;
  readonly programs: DatapathPrograms;
  readonly tables: EndpointTables;
  readonly lookup: SocketLookup;
  readonly settings: PolicyRoutesSettings;
  readonly repairs: Repairs;
  readonly log: Pick<Log, 'info' | 'error'>;
}

export class NodeState {
  readonly #options: NodeStateOptions;
  /** From the first time that everything was in place, whatever has to be put there is a repair. */
  #settled = false;
  #problem: string | undefined = 'the first round has not run yet';
  #addresses: ReadonlySet<string> = new Set();

  constructor(options: NodeStateOptions) {
    this.#options = options;
  }

  /** Why the node-wide parts are not in place; undefined when they are. */
  problem(): string | undefined {
    return this.#problem;
  }

  /** Compares everything with what is wanted, and puts right what differs. `addresses`: those of intercepted pods. */
  async ensure(addresses: ReadonlySet<string>): Promise<void> {
    const { socket, settings, notrack, programs, tables, lookup, log } = this.#options;
    try {
      for (const what of programs.ensurePins()) {
        this.#put('pin', what);
      }
      for (const what of tables.refresh()) {
        this.#put('map', what);
      }
      const routes = await ensurePolicyRoutes(socket, settings, { tableIsOurs: this.#settled });
      for (const what of routes.repaired) {
        this.#put('policy-route', what);
      }
      for (const what of (await notrack.ensure(addresses)).repaired) {
        this.#put('nftables', what);
      }
      this.#addresses = addresses;
      const done = lookup.attach(programs.programs.reuse);
      if (done !== 'kept') {
        this.#put('socket-lookup', `socket lookup ${done}`);
      }
      this.#problem = (await marksAreDelivered(socket, settings))
        ? undefined
        : `packets with our mark are not delivered by table ${settings.table}: a rule of somebody else's comes before priority ${settings.rulePriority}`;
      this.#settled ||= this.#problem === undefined;
    } catch (error) {
      const message = error instanceof Error ? error.message : String(error);
      if (this.#problem !== message) {
        log.error({ err: error }, 'the node-wide parts of the datapath are not in place');
      }
      this.#problem = message;
    }
  }

  /** Between two looks at everything: only the addresses have changed. */
  async addresses(addresses: ReadonlySet<string>): Promise<void> {
    const before = this.#addresses;
    const add = [...addresses].filter((ip) => !before.has(ip));
    const remove = [...before].filter((ip) => !addresses.has(ip));
    if (this.#options.notrack.change({ add, remove })) {
      this.#addresses = addresses;
    } else {
      await this.ensure(addresses);
    }
  }

  #put(kind: RepairKind, what: string): void {
    if (this.#settled) {
      this.#options.repairs.note(kind, what);
    } else {
      this.#options.log.info({ kind, what }, 'put in place');
    }
  }
}
