/** The rules that a copy of the identities rests on, at both doors. */

import { IdentityClient } from '../client/identity-client.js';
import { type Check, type Context, same, truth } from './check.js';
import type { Door, WatchEvent, WatchFrom } from './doors.js';

const TIMEOUT_MS = 10_000;
/** A heartbeat comes every ten seconds. */
const HEARTBEAT_MS = 25_000;
const TRIES = 5;

const doorsOf = ({ http, grpc }: Context): readonly Door[] => [http, grpc];
const isWhole = (events: readonly WatchEvent[]) => events.at(-1)?.kind === 'SNAPSHOT_DONE';

async function whole(door: Door, from?: WatchFrom): Promise<readonly WatchEvent[]> {
  const events = await door.watch(from, isWhole, TIMEOUT_MS);
  truth(`${door.name}: no SNAPSHOT_DONE within ${TIMEOUT_MS} ms`, isWhole(events));
  return events;
}

function uidsIn(events: readonly WatchEvent[]): string {
  const uids = new Set<string>();
  for (const { kind, uid } of events) {
    if (kind === 'UPSERT') {
      uids.add(uid);
    } else if (kind === 'REMOVED') {
      uids.delete(uid);
    }
  }
  return [...uids].sort().join(' ');
}

/** Pods may come and go in between: once has to do. */
async function eventually(what: string, look: () => Promise<readonly [string, string]>): Promise<void> {
  for (let tries = 1; ; tries++) {
    const [one, other] = await look();
    if (one === other || tries === TRIES) {
      same(what, one, other);
      return;
    }
  }
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
    says: 'both doors, and the list of workloads, have the same pods',
    run: async (context) => {
      const listed = async () => {
        const { body } = await context.http.send('GET', '/v1/workloads');
        const { workloads } = body as { workloads: readonly { uid: string; state: string }[] };
        return workloads
          .filter(({ state }) => state === 'LIVE')
          .map(({ uid }) => uid)
          .sort()
          .join(' ');
      };
      for (const door of doorsOf(context)) {
        await eventually(`${door.name} and /v1/workloads`, async () => [
          await listed(),
          uidsIn(await whole(door)),
        ]);
      }
      return undefined;
    },
  },
  {
    id: 'watch.resume',
    says: 'who comes back from the last revision gets nothing twice',
    run: async (context) => {
      for (const door of doorsOf(context)) {
        const last = (await whole(door)).at(-1);
        const from = { epoch: last?.epoch ?? '', since: last?.revision ?? 0 };
        const events = await whole(door, from);
        truth(
          `${door.name}: a snapshot came, for revision ${from.since} of ${from.epoch}`,
          events.every(({ kind }) => kind !== 'SNAPSHOT'),
        );
        truth(
          `${door.name}: what was known came again`,
          events.every(({ kind, revision }) => kind === 'SNAPSHOT_DONE' || revision >= from.since),
        );
      }
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
          uidsIn(await whole(context.http)),
          client
            .workloads()
            .map(({ uid }) => uid)
            .sort()
            .join(' '),
        ]);
      } finally {
        await client.close();
      }
      return undefined;
    },
  },
];
