/** Each key at each door: the right answer, and the same. */

import { readFileSync } from 'node:fs';
import { type Check, type Context, same, truth } from './check.js';
import type { Answer, Asked } from './doors.js';

const MOST_PODS = 5;
const MOST_FLOWS = 20;
/** Of the documentation's, which nobody has (RFC 5737). */
const NOBODY = '192.0.2.1';

interface WorkloadLine {
  readonly uid: string;
  readonly spiffeId: string;
  readonly ips: readonly string[];
  readonly interception: { readonly interface: string };
}

async function workloads({ http }: Context): Promise<readonly WorkloadLine[]> {
  const { body } = await http.send('GET', '/v1/workloads');
  return (body as { workloads: readonly WorkloadLine[] }).workloads;
}

/** What both say, which has to be the same. */
async function both({ http, grpc }: Context, asked: Asked): Promise<Answer> {
  const [one, other] = [await http.ask(asked), await grpc.ask(asked)];
  same(`${JSON.stringify(asked)}, HTTP and gRPC`, one, other);
  return one;
}

async function refused(context: Context, asked: Asked, reason: string): Promise<void> {
  same(JSON.stringify(asked), { reason }, await both(context, asked));
}

const named = (answer: Answer) => ('podUid' in answer ? answer.podUid : `refused: ${answer.reason}`);

/** Pods with a name, of which each of `key` is one's alone. */
async function podsBy(
  context: Context,
  keysOf: (pod: WorkloadLine) => readonly string[],
): Promise<readonly { readonly uid: string; readonly key: string }[]> {
  const all = await workloads(context);
  const keys = all.flatMap((pod) =>
    keysOf(pod).map((key) => ({ uid: pod.uid, spiffeId: pod.spiffeId, key })),
  );
  return keys
    .filter(({ key, spiffeId }) => spiffeId !== '' && keys.filter((other) => other.key === key).length === 1)
    .slice(0, MOST_PODS);
}

const NO_PODS = 'no pod of this node has a name';

export const KEY_CHECKS: readonly Check[] = [
  {
    id: 'key.podUid',
    says: 'a pod by its UID',
    run: async (context) => {
      const pods = await podsBy(context, ({ uid }) => [uid]);
      for (const { uid } of pods) {
        same(`podUid ${uid}`, uid, named(await both(context, { podUid: uid })));
      }
      return pods.length === 0 ? NO_PODS : undefined;
    },
  },
  {
    id: 'key.address',
    says: 'a pod by its address, and only for who asks for as little as that',
    run: async (context) => {
      const pods = await podsBy(context, ({ ips }) => ips);
      for (const { uid, key: address } of pods) {
        same(`address ${address}`, uid, named(await both(context, { address, minAssurance: 'IP_ONLY' })));
        await refused(context, { address }, 'ASSURANCE_TOO_LOW');
      }
      return pods.length === 0 ? NO_PODS : undefined;
    },
  },
  {
    id: 'key.hostInterface',
    says: 'a pod by the host’s end of its interface',
    run: async (context) => {
      const pods = await podsBy(context, ({ interception }) =>
        interception.interface === '' ? [] : [interception.interface],
      );
      for (const { uid, key: hostInterface } of pods) {
        same(`hostInterface ${hostInterface}`, uid, named(await both(context, { hostInterface })));
      }
      return pods.length === 0 ? 'no pod with a name is intercepted' : undefined;
    },
  },
  {
    id: 'key.flow',
    says: 'recorded flows, with both their ends',
    run: async (context) => {
      const { body } = await context.http.send('GET', `/v1/flows?limit=${MOST_FLOWS}`);
      const { flows } = body as { flows: readonly Readonly<Record<string, string>>[] };
      let answered = 0;
      for (const { src = '', dst = '', podUid = '', direction = '' } of flows) {
        const answer = await both(context, { proto: 'tcp', src, dst });
        // Its pod may be without a name, or have gone and another have its address.
        if ('podUid' in answer) {
          answered += 1;
          same(
            `${src} to ${dst}`,
            [podUid, direction, 'DATAPATH_RECORDED'],
            [answer.podUid, answer.direction, answer.assurance],
          );
          same(
            `${src} to ${dst}, its own end`,
            podUid,
            direction === 'EGRESS' ? answer.source : answer.destination,
          );
        }
      }
      return answered === 0 ? 'no flow of a pod with a name is recorded' : undefined;
    },
  },
  {
    id: 'key.process',
    says: 'a process, by its number and when it started',
    run: async (context) => {
      const stat = readFileSync('/proc/self/stat', 'utf8');
      const startTime = stat.slice(stat.lastIndexOf(')') + 2).split(' ')[19] ?? '';
      const pid = String(process.pid);
      await both(context, { pid, startTime }); // ours may be of a pod
      await refused(context, { pid, startTime: String(BigInt(startTime) + 1n) }, 'WORKLOAD_NOT_FOUND');
      return undefined;
    },
  },
  {
    id: 'key.netnsCookie',
    says: 'a network namespace, by its cookie',
    run: async (context) => {
      await refused(context, { netnsCookie: '18446744073709551615' }, 'WORKLOAD_NOT_FOUND');
      return undefined;
    },
  },
];

const MALFORMED: readonly Asked[] = [
  {},
  { proto: 'udp', src: `${NOBODY}:1`, dst: `${NOBODY}:2` },
  { proto: 'tcp', src: NOBODY, dst: `${NOBODY}:2` },
  { proto: 'tcp', src: `${NOBODY}:1`, dst: `${NOBODY}:65536` },
  { proto: 'tcp', src: 'fd00::1:80', dst: `${NOBODY}:2` },
  { address: '192.0.2.256', minAssurance: 'IP_ONLY' },
  { address: NOBODY, minAssurance: 'NONE' },
  { podUid: '' },
  { podUid: 'x'.repeat(254) },
  { hostInterface: 'a/b' },
  { hostInterface: 'sixteen-letters-' },
  { pid: '0', startTime: '1' },
  { netnsCookie: '0' },
  { socketCookie: '1' },
  { podUid: 'a', minEpoch: 'e', minRevision: '1', waitMs: '5001' },
];

export const REASON_CHECKS: readonly Check[] = [
  {
    id: 'reason.KEY_INVALID',
    says: 'what is malformed is refused as that',
    run: async (context) => {
      for (const asked of MALFORMED) {
        await refused(context, asked, 'KEY_INVALID');
      }
      return undefined;
    },
  },
  {
    id: 'reason.WORKLOAD_NOT_FOUND',
    says: 'who is of no pod of this node is not found',
    run: async (context) => {
      await refused(context, { address: NOBODY, minAssurance: 'IP_ONLY' }, 'WORKLOAD_NOT_FOUND');
      await refused(context, { podUid: 'nobody-has-this-uid' }, 'WORKLOAD_NOT_FOUND');
      await refused(context, { hostInterface: 'nobody-has-it' }, 'WORKLOAD_NOT_FOUND');
      const flow = { proto: 'tcp', src: `${NOBODY}:1`, dst: `${NOBODY}:2` };
      await refused(context, flow, 'WORKLOAD_NOT_FOUND');
      return undefined;
    },
  },
  {
    id: 'reason.NOT_SYNCED',
    says: 'a revision of another agent is never reached',
    run: async (context) => {
      const asked = { podUid: 'any', minEpoch: 'another', minRevision: '1' };
      await refused(context, asked, 'NOT_SYNCED');
      return undefined;
    },
  },
  {
    id: 'batch.order',
    says: 'a batch answers each question for itself, in their order',
    run: async (context) => {
      const [pod] = await podsBy(context, ({ uid }) => [uid]);
      const asked = [
        { address: NOBODY, minAssurance: 'IP_ONLY' },
        { proto: 'tcp', src: `${NOBODY}:1`, dst: `${NOBODY}:2` },
        ...(pod === undefined ? [] : [{ podUid: pod.uid }]),
        { proto: 'tcp', src: 'nonsense', dst: `${NOBODY}:2` },
      ];
      const single = await Promise.all(asked.map((one) => context.http.ask(one)));
      for (const door of [context.http, context.grpc]) {
        same(`a batch by ${door.name}`, single, await door.batch(asked));
      }
      return undefined;
    },
  },
  {
    id: 'batch.limit',
    says: 'more than 256 questions are refused as a whole',
    run: async ({ http, grpc }) => {
      const asked = Array.from({ length: 257 }, () => ({ podUid: 'any' }));
      for (const door of [http, grpc]) {
        same(`257 questions by ${door.name}`, { reason: 'KEY_INVALID' }, await door.batch(asked));
      }
      return undefined;
    },
  },
  {
    id: 'http.rules',
    says: 'the guard header, unknown paths, wrong methods',
    run: async ({ http }) => {
      const unguarded = await http.send('GET', '/v1/workloads', { guard: false });
      same('without the guard header', 400, unguarded.status);
      same('an unknown path', 404, (await http.send('GET', '/v1/nothing-of-the-kind')).status);
      same('another method', 405, (await http.send('PUT', '/v1/workloads')).status);
      return undefined;
    },
  },
  {
    id: 'http.openapi',
    says: '/openapi.json describes what is there',
    run: async ({ http }) => {
      const { status, body } = await http.send('GET', '/openapi.json');
      same('/openapi.json', 200, status);
      const { openapi, paths } = body as { openapi: string; paths: Readonly<Record<string, object>> };
      truth(`openapi is ${openapi}, expected 3.1`, openapi.startsWith('3.1'));
      for (const path of ['/v1/resolve', '/v1/resolve:batch', '/v1/workloads', '/v1/watch']) {
        truth(`${path} is not described`, paths[path] !== undefined);
      }
      return undefined;
    },
  },
];
