/** Many who watch the identities, of whom some never read: the others are told as if those were not there. */

import { readFileSync } from 'node:fs';
import { connect, type Socket } from 'node:net';
import { join } from 'node:path';
import { afterAll, beforeAll, expect, it } from 'vitest';
import { waitFor } from '../lab/exec.js';
import { Lab } from '../lab/lab.js';
import { sized } from '../lab/size.js';
import { TestAgent } from './agent.js';

const WATCHERS = sized(200, 1_000);
/** They open the stream and leave it at that. */
const NEVER_READ = sized(20, 100);
const CHANGES = 20;
/** A line is some 600 bytes: what waits for a reader is soon more than a socket holds. */
const PODS = 400;
/** From the first reader that was told to the last one; at full size nothing else wants the two cores. */
const SPREAD_MS = sized(2_000, 200);
/** What may wait for each of those that never read is 4 MiB, and what was told once is held once for all. */
const MAY_GROW_MIB = sized(200, 400);

let lab: Lab;
let agent: TestAgent;
const sockets: Socket[] = [];

const podsWith = (note: string) =>
  Array.from({ length: PODS }, (_, n) => ({
    namespace: 'default',
    name: `pod-${n}`,
    uid: `uid-${n}`,
    runtime: 'runc',
    labels: { note },
    ips: [`10.77.${Math.floor(n / 250)}.${(n % 250) + 1}`],
    interface: `nobody${n}`,
  }));

function watch(): Promise<Socket> {
  return new Promise((resolve, reject) => {
    const socket = connect(join(agent.runDir, 'http.sock'), () => {
      socket.write('GET /v1/watch HTTP/1.1\r\nhost: localhost\r\nnodesentry.io: true\r\n\r\n');
      sockets.push(socket);
      resolve(socket);
    });
    socket.once('error', reject);
  });
}

const rssMib = () =>
  Number(/VmRSS:\s+(\d+) kB/.exec(readFileSync(`/proc/${agent.pid}/status`, 'utf8'))?.[1]) / 1024;

beforeAll(async () => {
  lab = await Lab.create();
  agent = new TestAgent(lab, { sources: { static: { file: 'pods.yaml' } } });
  agent.writePods(podsWith('first'));
  await agent.start();
}, 60_000);

afterAll(async () => {
  for (const socket of sockets) {
    socket.destroy();
  }
  await lab?.close();
});

it(`${WATCHERS} watchers, ${NEVER_READ} of whom never read`, async () => {
  const before = rssMib();
  for (let i = 0; i < NEVER_READ; i++) {
    (await watch()).pause();
  }
  /** When each reader had seen the last pod of a round, by the round's note. */
  const seen = new Map<string, number[]>();
  let done = 0;
  for (let i = NEVER_READ; i < WATCHERS; i++) {
    const reader = await watch();
    let tail = '';
    const known = new Set<string>();
    reader.on('data', (bytes: Buffer) => {
      const text = tail + bytes.toString('latin1');
      tail = text.slice(-120);
      if (!known.has('snapshot') && text.includes('SNAPSHOT_DONE')) {
        known.add('snapshot');
        seen.set('snapshot', [...(seen.get('snapshot') ?? []), performance.now()]);
      }
      for (const [, note = ''] of text.matchAll(/"note":"(round-\d+)"/g)) {
        if (!known.has(note)) {
          known.add(note);
          seen.set(note, [...(seen.get(note) ?? []), performance.now()]);
        }
      }
    });
  }
  await waitFor('every snapshot', () => (seen.get('snapshot')?.length ?? 0) >= WATCHERS - NEVER_READ, 60_000);
  const spreads: number[] = [];
  for (done = 1; done <= CHANGES; done++) {
    const note = `round-${done}`;
    const [first, ...rest] = podsWith('first');
    // One pod for each reader to see; every fifth time all of them, for those that do not read.
    agent.writePods(done % 5 === 0 ? podsWith(note) : [{ ...first, labels: { note } }, ...rest]);
    const times = await waitFor(
      `${note} at all readers`,
      () => ((seen.get(note)?.length ?? 0) >= WATCHERS - NEVER_READ ? seen.get(note) : undefined),
      30_000,
    );
    if (done % 5 !== 0) {
      spreads.push(Math.max(...times) - Math.min(...times));
    }
  }
  process.stdout.write(
    `watchers: a change reached the last of ${WATCHERS - NEVER_READ} readers ${Math.max(...spreads).toFixed(0)} ms after the first, at the worst; the agent grew by ${(rssMib() - before).toFixed(0)} MiB\n`,
  );
  expect(Math.max(...spreads)).toBeLessThan(SPREAD_MS);
  expect(rssMib() - before).toBeLessThan(MAY_GROW_MIB);
}, 300_000);
