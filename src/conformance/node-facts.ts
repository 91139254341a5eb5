/** What there is to ask about on this node, by its own word, and what both doors say of it. */

import type { Answer, Named } from './answer.js';
import { type Context, same } from './check.js';
import type { Asked } from './doors.js';

const MOST_PODS = 5;
const MOST_FLOWS = 20;
/** Of the documentation's, which nobody has (RFC 5737). */
export const NOBODY = '192.0.2.1';
/** Cookies are counted from one. */
export const NO_COOKIE = '18446744073709551615';

export interface ListedPod {
  readonly uid: string;
  readonly namespace: string;
  readonly app: string;
  readonly spiffeId: string;
  readonly state: string;
  readonly ips: readonly string[];
  readonly interception: { readonly interface: string };
}

export interface ListedFlow {
  readonly src: string;
  readonly dst: string;
  readonly direction: string;
  readonly podUid: string;
}

export async function listedPods({ http }: Pick<Context, 'http'>): Promise<readonly ListedPod[]> {
  const { body } = await http.send('GET', '/v1/workloads');
  return (body as { workloads: readonly ListedPod[] }).workloads;
}

export async function listedFlows({ http }: Pick<Context, 'http'>): Promise<readonly ListedFlow[]> {
  const { body } = await http.send('GET', `/v1/flows?limit=${MOST_FLOWS}`);
  return (body as { flows: readonly ListedFlow[] }).flows;
}

/** Some live pods with a name, each with a key that is of no other pod. */
export async function podsBy(
  context: Context,
  keysOf: (pod: ListedPod) => readonly string[],
): Promise<readonly { readonly pod: ListedPod; readonly key: string }[]> {
  const all = (await listedPods(context)).flatMap((pod) => keysOf(pod).map((key) => ({ pod, key })));
  const isAlone = (key: string) => all.filter((other) => other.key === key).length === 1;
  return all
    .filter(({ pod, key }) => pod.state === 'LIVE' && pod.spiffeId !== '' && isAlone(key))
    .slice(0, MOST_PODS);
}

/** What both doors say, which has to be the same. */
export async function both({ http, grpc }: Context, asked: Asked): Promise<Answer> {
  const [one, other] = [await http.ask(asked), await grpc.ask(asked)];
  same(`${JSON.stringify(asked)}, HTTP and gRPC`, one, other);
  return one;
}

/** Throws where there is no name. */
export async function namedByBoth(context: Context, asked: Asked): Promise<Named> {
  const answer = await both(context, asked);
  if ('reason' in answer) {
    throw new Error(`${JSON.stringify(asked)}: refused as ${answer.reason}`);
  }
  return answer;
}

export async function refusedByBoth(context: Context, asked: Asked, reason: string): Promise<void> {
  const answer = await both(context, asked);
  same(JSON.stringify(asked), reason, 'reason' in answer ? answer.reason : `the name ${answer.spiffeId}`);
}
