/** The rules that a copy of the identities rests on, at both doors. */

import { IdentityClient } from '../client/identity-client.js';
import { type WatchEvent, workloadText } from './answer.js';
import { type Check, doorsOf, eventually, same, truth } from './check.js';
import type { Door, WatchFrom } from './doors.js';

const TIMEOUT_MS = 10_000;
/** A heartbeat comes every ten seconds; after half as much again nodesentry/client takes the agent for gone. */
const HEARTBEAT_MS = 15_000;

const isWhole = (events: readonly WatchEvent[]) => events.at(-1)?.kind === 'SNAPSHOT_DONE';

async function whole(door: Door, from?: WatchFrom): Promise<readonly WatchEvent[]> {
  const events = await door.watch(from, isWhole, TIMEOUT_MS);
  truth(`${door.name}: no SNAPSHOT_DONE within ${TIMEOUT_MS} ms`, isWhole(events));
  return events;
}

/** Of the pods that are left at the end, a line each. */
function podsIn(events: readonly WatchEvent[]): string {
  const pods = new Map<string, string>();
  for (const { kind, uid, workload } of events) {
    if (kind === 'UPSERT') {
      pods.set(uid, workload);
    } else if (kind === 'REMOVED') {
      pods.delete(uid);
    }
  }
  return [...pods.values()].sort().join('\n');
}

export const WATCH_CHECKS: readonly Check[] = [
  {
    id: 'watch.snapshot',
    says: 'a watch begins with a snapshot, says when it is whole, and its revision never falls',
    run: async (context) => {
      for (const door of doorsOf(context)) {
        const events = await whole(door);
        same(`${door.name}, first`, 'SNAPSHOT', events[0]?.kind);
        const epochs = new Set(events.map(({ epoch }) => epoch));
        same(`${door.name}, epochs`, 1, epochs.size);
        events.forEach(({ revision }, index) => {
          const before = events[index - 1]?.revision ?? 0;
          truth(`${door.name}: revision ${revision} comes after ${before}`, revision >= before);
        });
      }
      return undefined;
    },
  },
  {
    id: 'watch.same',
    says: 'both doors, and the list of workloads, have the same pods, and the same of each',
    run: async (context) => {
      const listed = async () => {
        const { body } = await context.http.send('GET', '/v1/workloads');
        const { workloads } = body as { workloads: readonly { readonly state: string }[] };
        return workloads
          .filter(({ state }) => state === 'LIVE')
          .map((workload) => workloadText({ ...workload }))
          .sort()
          .join('\n');
      };
      for (const door of doorsOf(context)) {
        await eventually(`${door.name} and /v1/workloads`, async () => [
          await listed(),
          podsIn(await whole(door)),
        ]);
      }
      return undefined;
    },
  },
  {
    id: 'watch.resume',
    says: 'who comes back from a revision gets no pod twice, nothing older, and the same at both doors',
    run: async (context) => {
      const before = await whole(context.http);
      const { epoch = '', revision: since = 0 } = before.at(-1) ?? {};
      const known = new Set(before.filter(({ kind }) => kind === 'UPSERT').map(({ workload }) => workload));
      const resume = async (door: Door) => {
        const events = await whole(door, { epoch, since });
        const what = `${door.name}, from revision ${since} of ${epoch}`;
        const upserts = events.filter(({ kind }) => kind === 'UPSERT');
        truth(
          `${what}: a snapshot came`,
          events.every(({ kind }) => kind !== 'SNAPSHOT'),
        );
        truth(
          `${what}: an earlier revision came`,
          events.every(({ revision }) => revision >= since),
        );
        same(`${what}, pods`, new Set(upserts.map(({ uid }) => uid)).size, upserts.length);
        // Generations change without a revision of their own, so those of this one come again.
        const again = upserts.filter(({ workload, revision }) => known.has(workload) && revision > since);
        same(`${what}, what was known`, '', podsIn(again));
        return podsIn(events);
      };
      await eventually('what HTTP and gRPC have since', async () => [
        await resume(context.http),
        await resume(context.grpc),
      ]);
      return undefined;
    },
  },
  {
    id: 'watch.epoch',
    says: 'who comes back from another agent gets everything anew',
    run: async (context) => {
      for (const door of doorsOf(context)) {
        const events = await whole(door, { epoch: 'another', since: 1 });
        same(`${door.name}, first`, 'SNAPSHOT', events[0]?.kind);
      }
      return undefined;
    },
  },
  {
    id: 'watch.heartbeat',
    says: 'while nothing happens there is a heartbeat',
    run: async (context) => {
      if (context.fast) {
        return 'left out by --fast';
      }
      await Promise.all(
        doorsOf(context).map(async (door) => {
          const isBeaten = (events: readonly WatchEvent[]) => {
            const at = events.findIndex(({ kind }) => kind === 'SNAPSHOT_DONE');
            return at >= 0 && events.length > at + 1;
          };
          const events = await door.watch(undefined, isBeaten, HEARTBEAT_MS);
          truth(`${door.name}: nothing for ${HEARTBEAT_MS} ms`, isBeaten(events));
        }),
      );
      return undefined;
    },
  },
  {
    id: 'client.copy',
    says: 'the copy of nodesentry/client has the same pods',
    run: async (context) => {
      const client = new IdentityClient({ socket: context.http.path });
      try {
        const signal = AbortSignal.timeout(TIMEOUT_MS);
        while (!client.synced) {
          signal.throwIfAborted();
          await new Promise((resolve) => setTimeout(resolve, 10));
        }
        await eventually('the copy and the watch', async () => [
          podsIn(await whole(context.http)),
          client
            .workloads()
            .map((workload) => workloadText({ ...workload }))
            .sort()
            .join('\n'),
        ]);
      } finally {
        await client.close();
      }
      return undefined;
    },
  },
];
