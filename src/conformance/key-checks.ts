/** Each key at each door: the right answer, and the same. */

import { isKernelError } from '../native/errors.js';
import { netnsCookieAt } from '../native/sockets.js';
import type { Named } from './answer.js';
import { type Check, type Context, same, truth } from './check.js';
import {
  both,
  listedFlows,
  listedPods,
  NO_COOKIE,
  namedByBoth,
  podsBy,
  refusedByBoth,
} from './node-facts.js';
import { foreignProcesses, type NodeProcess, startTimeOf } from './processes.js';

const NO_PODS = 'no pod of this node has a name';
const NO_PROCESS = 'no process of a pod is to be seen from here';

/** Processes of pods of which the agent says so, with what it says. */
async function podProcesses(context: Context): Promise<readonly [NodeProcess, Named][]> {
  const found: [NodeProcess, Named][] = [];
  for (const process of foreignProcesses()) {
    const { pid, startTime } = process;
    try {
      const answer = await both(context, { pid, startTime });
      if (!('reason' in answer)) {
        found.push([process, answer]);
      }
    } catch (error) {
      if (startTimeOf(pid) === startTime) {
        throw error;
      }
    }
  }
  return found;
}

export const KEY_CHECKS: readonly Check[] = [
  {
    id: 'key.podUid',
    says: 'a pod by its UID',
    run: async (context) => {
      const pods = await podsBy(context, ({ uid }) => [uid]);
      for (const { key: podUid } of pods) {
        same(`podUid ${podUid}`, podUid, (await namedByBoth(context, { podUid })).podUid);
      }
      return pods.length === 0 ? NO_PODS : undefined;
    },
  },
  {
    id: 'key.address',
    says: 'a pod by its address, for who asks for as little as that',
    run: async (context) => {
      const pods = await podsBy(context, ({ ips }) => ips);
      for (const { pod, key: address } of pods) {
        const { podUid, assurance } = await namedByBoth(context, { address, minAssurance: 'IP_ONLY' });
        same(`address ${address}`, [pod.uid, 'IP_ONLY'], [podUid, assurance]);
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
      for (const { pod, key: hostInterface } of pods) {
        const { podUid } = await namedByBoth(context, { hostInterface });
        same(`hostInterface ${hostInterface}`, pod.uid, podUid);
      }
      return pods.length === 0 ? 'no pod with a name is intercepted' : undefined;
    },
  },
  {
    id: 'key.flow',
    says: 'recorded flows, with both their ends',
    run: async (context) => {
      let answered = 0;
      for (const { src, dst, podUid, direction } of await listedFlows(context)) {
        const answer = await both(context, { proto: 'tcp', src, dst });
        // Its pod may be without a name, or have gone and another have its address.
        if (!('reason' in answer)) {
          answered += 1;
          const own = direction === 'EGRESS' ? answer.source : answer.destination;
          same(
            `${src} to ${dst}: pod, own end, direction, assurance`,
            [podUid, podUid, direction, 'DATAPATH_RECORDED'],
            [answer.podUid, own, answer.direction, answer.assurance],
          );
        }
      }
      if (context.flow !== undefined) {
        const { assurance } = await namedByBoth(context, { proto: 'tcp', ...context.flow });
        same('the flow that was given', 'DATAPATH_RECORDED', assurance);
        return undefined;
      }
      return answered === 0 ? 'no flow of a pod with a name is recorded' : undefined;
    },
  },
  {
    id: 'key.process',
    says: 'a process, by its number and when it started',
    run: async (context) => {
      const pid = String(process.pid);
      const later = String(BigInt(startTimeOf(pid) ?? 0) + 1n);
      await refusedByBoth(context, { pid, startTime: later }, 'WORKLOAD_NOT_FOUND');
      const pods = new Map((await listedPods(context)).map((pod) => [pod.uid, pod]));
      const found = await podProcesses(context);
      for (const [{ pid: asked, addresses }, { podUid }] of found) {
        const ips = pods.get(podUid)?.ips;
        truth(
          `process ${asked} is of ${podUid}, of whose addresses ${ips} its namespace has none`,
          ips === undefined || ips.some((ip) => addresses.has(ip)),
        );
      }
      return found.length === 0 ? NO_PROCESS : undefined;
    },
  },
  {
    id: 'key.netnsCookie',
    says: 'a network namespace, by its cookie',
    run: async (context) => {
      await refusedByBoth(context, { netnsCookie: NO_COOKIE }, 'WORKLOAD_NOT_FOUND');
      let asked = 0;
      try {
        for (const [{ pid }, { podUid }] of await podProcesses(context)) {
          const cookie = netnsCookieAt(`/proc/${pid}/ns/net`);
          if (cookie !== undefined) {
            asked += 1;
            const answer = await namedByBoth(context, { netnsCookie: String(cookie) });
            same(`the namespace of process ${pid}`, podUid, answer.podUid);
          }
        }
      } catch (error) {
        if (isKernelError(error) && error.code === 'EPERM') {
          return 'who runs this may enter no network namespace';
        }
        throw error;
      }
      return asked === 0 ? NO_PROCESS : undefined;
    },
  },
];
