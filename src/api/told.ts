/** What a proxy tells of a flow that it has: checked, and of a flow that is recorded alone. */

import type { FlowRecord } from '../datapath/flows.js';
import { IdentityError } from '../identity/errors.js';
import type { LookedUp, Told } from '../identity/told.js';
import { formatSocketAddress } from '../net/socket-address.js';
import type { PodUid } from '../pods/pod.js';
import type { DatapathView } from '../reconcile/datapath-view.js';
import { addressOf, checkedKeys, invalid, protocolOf, refused, socketAddress } from './checks.js';
import type { ToldMessage } from './messages.js';

export const MAX_ANSWERS = 64;
export const MAX_TTL = 2 ** 31 - 1;
/** Of a name in DNS without its last dot (RFC 1035, 2.3.4), a colon and a port. */
export const MAX_DESTINATION = 253 + 6;
/** Letters, digits, dashes and underscores between dots; what else a name may have is none that a log should bear. */
export const NAME = '[A-Za-z0-9_](?:[A-Za-z0-9_.-]{0,251}[A-Za-z0-9_])?';
const IS_NAME = new RegExp(`^${NAME}$`);
const IS_NAMED = new RegExp(`^(${NAME}):([1-9]\\d{0,4})$`);

export interface TellingOptions {
  readonly told: Told;
  readonly datapath: Pick<DatapathView, 'lookupFlow' | 'podOfEndpoint' | 'isLiveEndpoint'>;
}

export class Telling {
  readonly #options: TellingOptions;

  constructor(options: TellingOptions) {
    this.#options = options;
  }

  /** Throws IdentityError, which names the field; nothing of it is kept then. */
  take(body: unknown): ToldMessage {
    const { told } = this.#options;
    const fields = checkedKeys(body, ['proto', 'src', 'dst', 'destination', 'answers'], '');
    if (fields.destination === undefined && fields.answers === undefined) {
      throw refused('answers', 'at least one of answers and destination is expected');
    }
    const proto = protocolOf(fields.proto ?? 'tcp', 'proto');
    const [src, dst] = [socketAddress(fields.src, 'src'), socketAddress(fields.dst, 'dst')];
    const destination = fields.destination === undefined ? undefined : destinationOf(fields.destination);
    const answers = fields.answers === undefined ? [] : answersOf(fields.answers);
    const flow = this.#options.datapath.lookupFlow(src, dst, proto);
    const uid = flow && this.#ownerOf(flow);
    if (flow === undefined || uid === undefined) {
      const text = `${proto} ${formatSocketAddress(src)} -> ${formatSocketAddress(dst)}`;
      throw new IdentityError('WORKLOAD_NOT_FOUND', `no flow of a pod is recorded as ${text}`);
    }
    if (destination !== undefined && flow.mode !== 'EXPLICIT') {
      throw refused('destination', 'the flow was intercepted: where it was going is its own destination');
    }
    if (destination !== undefined) {
      told.asks(flow, destination);
    }
    told.lookedUp(uid, answers);
    return { podUid: uid };
  }

  /** Of a record that outlives its endpoint, nobody. */
  #ownerOf({ endpointId, generation }: FlowRecord): PodUid | undefined {
    const { datapath } = this.#options;
    return datapath.isLiveEndpoint(endpointId, generation)
      ? datapath.podOfEndpoint(endpointId, generation)
      : undefined;
  }
}

function destinationOf(given: unknown): string {
  if (typeof given === 'string' && given.length <= MAX_DESTINATION) {
    const port = Number(IS_NAMED.exec(given)?.[2]);
    if (port <= 65_535) {
      return given;
    }
    if (given.startsWith('[')) {
      return formatSocketAddress(socketAddress(given, 'destination'));
    }
  }
  throw invalid('destination', 'a name or an address, and a port, such as shop.example:443', given);
}

function answersOf(given: unknown): LookedUp[] {
  if (!Array.isArray(given) || given.length > MAX_ANSWERS) {
    throw invalid('answers', `a list of at most ${MAX_ANSWERS}`, given);
  }
  return given.map((one: unknown, index) => {
    const place = `answers[${index}].`;
    const { name, ip, ttlSeconds } = checkedKeys(one, ['name', 'ip', 'ttlSeconds'], place);
    if (typeof name !== 'string' || !IS_NAME.test(name)) {
      throw invalid(`${place}name`, 'a name such as shop.example', name);
    }
    if (!Number.isInteger(ttlSeconds) || (ttlSeconds as number) < 0 || (ttlSeconds as number) > MAX_TTL) {
      throw invalid(`${place}ttlSeconds`, `a whole number from 0 to ${MAX_TTL}`, ttlSeconds);
    }
    return { name, ip: addressOf(ip, `${place}ip`), ttlSeconds: ttlSeconds as number };
  });
}
