/**
 * The only user of the `netlink` package (with netlink-messages.ts): routes, rules, addresses and links, by request and response.
 *
 * The package answers one request at a time per socket (EBUSY otherwise), has no default time limit, gives errors
 * without a code and does not filter dumps; all of that is made good here. Link events are not taken from it: an
 * overrun multicast buffer aborts the process (see src/native/link-events.ts for ours).
 */

import netlink from 'netlink';
import { RouteTables, type TableRoute } from '../native/routes.js';
import { AF, type Family } from '../net/family.js';
import { ipToNetworkBytes } from '../net/ip.js';
import type { Link } from '../net/link.js';
import {
  attributes,
  localDefault,
  type Route,
  type Rule,
  ruleAttrs,
  toLink,
  toRoute,
  toRule,
  vethInfo,
} from './netlink-messages.js';

const LOOPBACK_INDEX = 1;
/** RT_SCOPE_HOST, rtnetlink(7). */
const SCOPE_HOST = 254;
const RECEIVE_BYTES = 1 << 20;
const SEND_BYTES = 1 << 16;
const RTM_GETNSID = 90;
const NETNSA_NSID = 1;
const NETNSA_FD = 3;
/** Documentation addresses (RFC 5737, RFC 3849): nobody has a route of their own to them. */
const PROBE: Readonly<Record<Family, Buffer>> = {
  4: Buffer.from([198, 51, 100, 1]),
  6: Buffer.from('20010db8000000000000000000000001', 'hex'),
};
export class NetlinkError extends Error {
  override readonly name = 'NetlinkError';
  constructor(
    /** Symbolic errno such as `EEXIST`, `TIMEOUT`, `CLOSED` or `UNKNOWN`. */
    readonly code: string,
    doing: string,
    cause?: unknown,
  ) {
    super(`${doing}: ${code}`, { cause });
  }
}

export interface RouteSocketOptions {
  /** Limit for one request, waiting time in the queue not counted; milliseconds. */
  readonly timeoutMs?: number;
}

/** A netlink route socket in the network namespace that was current when it was opened. */
export class RouteSocket {
  readonly #socket: ReturnType<typeof netlink.createRtNetlink>;
  readonly #tables: RouteTables;
  readonly #timeoutMs: number;
  #tail: Promise<unknown> = Promise.resolve();
  #closed = false;

  constructor(options: RouteSocketOptions = {}) {
    this.#timeoutMs = options.timeoutMs ?? 5_000;
    this.#tables = new RouteTables();
    this.#socket = netlink.createRtNetlink({
      ref: false,
      recvBufferSize: RECEIVE_BYTES,
      sendBufferSize: SEND_BYTES,
    });
  }

  links(): Promise<Link[]> {
    return this.#queue('listing links', async (options) =>
      (await this.#socket.getLinks({}, {}, options)).map(toLink),
    );
  }

  /** One link, by ifindex or by name; undefined where there is none. */
  link(which: number | string): Promise<Link | undefined> {
    return this.#queue(`looking for link ${which}`, async (options) => {
      const [data, attrs] = typeof which === 'number' ? [{ index: which }, {}] : [{}, { ifname: which }];
      try {
        const [message] = await this.#socket.getLink(data, attrs, options);
        return message === undefined ? undefined : toLink(message);
      } catch (error) {
        if (codeOf(error) === 'ENODEV') {
          return undefined;
        }
        throw error;
      }
    });
  }

  /** Both ends are down. NetlinkError EEXIST where a name is taken. */
  addVethPair(name: string, peer: string, mtu: number): Promise<void> {
    return this.#queue(`adding the interfaces ${name} and ${peer}`, async (options) => {
      const flags = netlink.FlagsNew.CREATE | netlink.FlagsNew.EXCL;
      const attrs = { ifname: name, mtu, linkinfo: vethInfo(peer, mtu) };
      await this.#socket.newLink({}, attrs, { ...options, flags });
    });
  }

  /** Of a veth pair, both ends. NetlinkError ENODEV where it has gone. */
  deleteLink(index: number): Promise<void> {
    return this.#queue(`deleting the interface ${index}`, async (options) => {
      await this.#socket.delLink({ index }, {}, options);
    });
  }

  setUp(index: number): Promise<void> {
    return this.#queue(`setting the interface ${index} up`, async (options) => {
      await this.#socket.setLink({ index, flags: { up: true }, change: { up: true } }, {}, options);
    });
  }

  /** An IPv4 address of this host alone (scope host). False where the interface has it. */
  async addHostAddress(index: number, ip: string): Promise<boolean> {
    const address = Buffer.from(ipToNetworkBytes(ip));
    try {
      await this.#queue(`adding the address ${ip}`, async (options) => {
        const flags = netlink.FlagsNew.CREATE | netlink.FlagsNew.EXCL;
        const data = { family: AF[4], prefixlen: 32, scope: SCOPE_HOST, index };
        await this.#socket.newAddress(data, { local: address, address }, { ...options, flags });
      });
      return true;
    } catch (error) {
      if (error instanceof NetlinkError && error.code === 'EEXIST') {
        return false;
      }
      throw error;
    }
  }

  /** Where a packet with `mark` would go now, by all rules and tables together; undefined: nowhere. */
  lookup(family: Family, mark: number): Promise<Pick<Route, 'table' | 'type'> | undefined> {
    return this.#queue(`looking an IPv${family} route up`, async (options) => {
      const packed = Buffer.alloc(4);
      packed.writeUInt32LE(mark >>> 0);
      const data = {
        family: AF[family],
        dstLen: PROBE[family].length * 8,
        flags: { lookupTable: true },
      } as const;
      try {
        const [message] = await this.#socket.getRoute(data, { dst: PROBE[family], mark: packed }, options);
        return message === undefined ? undefined : toRoute(family, message);
      } catch (error) {
        if (['ENETUNREACH', 'EHOSTUNREACH', 'EACCES', 'EINVAL'].includes(codeOf(error))) {
          return undefined; // no route, or one that says so: unreachable, prohibit, blackhole
        }
        throw error;
      }
    });
  }

  rules(family: Family): Promise<Rule[]> {
    return this.#queue(`listing IPv${family} rules`, async (options) =>
      (await this.#socket.getRules({ family: AF[family] }, {}, options)).map((message) =>
        toRule(family, message),
      ),
    );
  }

  addRule(rule: Omit<Rule, 'narrowed'>): Promise<void> {
    return this.#queue(`adding the IPv${rule.family} rule at priority ${rule.priority}`, async (options) => {
      const flags = netlink.FlagsNew.CREATE | netlink.FlagsNew.EXCL;
      await this.#socket.newRule({ family: AF[rule.family], action: 'toTbl' }, ruleAttrs(rule), {
        ...options,
        flags,
      });
    });
  }

  deleteRule(rule: Omit<Rule, 'narrowed'>): Promise<void> {
    return this.#queue(
      `deleting the IPv${rule.family} rule at priority ${rule.priority}`,
      async (options) => {
        await this.#socket.delRule({ family: AF[rule.family], action: 'toTbl' }, ruleAttrs(rule), options);
      },
    );
  }

  /** Of all tables: for nodes with many routes this is a long list. */
  routes(family: Family): Promise<Route[]> {
    return this.#queue(`listing IPv${family} routes`, async (options) =>
      (await this.#socket.getRoutes({ family: AF[family] }, {}, options)).map((message) =>
        toRoute(family, message),
      ),
    );
  }

  /** Of one table, filtered by the kernel. */
  tableRoutes(family: Family, table: number): TableRoute[] {
    return this.#tables.routes(family, table);
  }

  /** `local default dev lo`: whatever is looked up in `table` is delivered on this node. */
  addLocalDefault(family: Family, table: number): Promise<void> {
    return this.#queue(`adding the IPv${family} local route to table ${table}`, async (options) => {
      const flags = netlink.FlagsNew.CREATE | netlink.FlagsNew.EXCL;
      await this.#socket.newRoute(
        localDefault(family),
        { table, oif: LOOPBACK_INDEX },
        { ...options, flags },
      );
    });
  }

  deleteLocalDefault(family: Family, table: number): Promise<void> {
    return this.#queue(`deleting the IPv${family} local route from table ${table}`, async (options) => {
      await this.#socket.delRoute(localDefault(family), { table, oif: LOOPBACK_INDEX }, options);
    });
  }

  /** Whatever its type and gateway. */
  deleteRoute(
    family: Family,
    table: number,
    route: { readonly destination: string; readonly prefixLength: number; readonly metric?: number },
  ): Promise<void> {
    return this.#queue(`deleting an IPv${family} route from table ${table}`, async (options) => {
      const dst = route.destination === '' ? undefined : Buffer.from(ipToNetworkBytes(route.destination));
      await this.#socket.delRoute(
        { family: AF[family], dstLen: route.prefixLength, scope: 'NOWHERE' },
        {
          table,
          ...(dst === undefined ? {} : { dst }),
          ...(route.metric === undefined ? {} : { priority: route.metric }),
        },
        options,
      );
    });
  }

  /** The id by which this socket's namespace knows the one behind `netnsFd`; undefined while it has none. */
  namespaceId(netnsFd: number): Promise<number | undefined> {
    return this.#queue('asking for a namespace id', async (options) => {
      const request = Buffer.alloc(12);
      request.writeUInt16LE(8, 4);
      request.writeUInt16LE(NETNSA_FD, 6);
      request.writeUInt32LE(netnsFd, 8);
      const [messages] = await this.#socket.socket.request(RTM_GETNSID, request, options);
      const reply = messages[0]?.data;
      if (reply === undefined || reply.length < 12) {
        return undefined;
      }
      for (const attribute of attributes(reply.subarray(4))) {
        if (attribute.type === NETNSA_NSID && attribute.data.length >= 4) {
          const id = attribute.data.readInt32LE(0);
          return id < 0 ? undefined : id;
        }
      }
      return undefined;
    });
  }

  close(): void {
    if (!this.#closed) {
      this.#closed = true;
      this.#socket.socket.close();
      this.#tables.close();
    }
  }

  #queue<T>(doing: string, request: (options: { timeout: number }) => Promise<T>): Promise<T> {
    const run = this.#tail.then(async () => {
      if (this.#closed) {
        throw new NetlinkError('CLOSED', doing);
      }
      try {
        return await request({ timeout: this.#timeoutMs });
      } catch (error) {
        throw new NetlinkError(codeOf(error), doing, error);
      }
    });
    this.#tail = run.catch(() => undefined);
    return run;
  }
}

function codeOf(error: unknown): string {
  const message = error instanceof Error ? error.message : String(error);
  if (/timeout|timed out/i.test(message)) {
    return 'TIMEOUT';
  }
  return /\b(E[A-Z0-9]{2,})\b/.exec(message)?.[1] ?? 'UNKNOWN';
}
