/** The load of `make bench` against a server that is none of ours: it must not flatter. */

import { type AddressInfo, createServer, type Server, type Socket } from 'node:net';
import { afterEach, expect, it } from 'vitest';
import type { Told } from '../bench/datapath/workloads.js';
import { tryRun } from '../lab/exec.js';
import { buildLoad } from '../lab/image.js';

const REQUEST = 128;
const ANSWER = Buffer.alloc(1_024, 'a');

let server: Server | undefined;

afterEach(() => {
  server?.close();
});

function serve(answer: (socket: Socket, asked: number) => void): Promise<number> {
  let asked = 0;
  const listening = createServer((socket) => {
    let had = 0;
    socket.on('error', () => undefined);
    socket.on('data', (data) => {
      for (had += data.length; had >= REQUEST; had -= REQUEST) {
        asked += 1;
        answer(socket, asked);
      }
    });
  });
  server = listening;
  return new Promise((resolve) => {
    listening.listen(0, '127.0.0.1', () => resolve((listening.address() as AddressInfo).port));
  });
}

async function load(kind: string, port: number, ...more: readonly string[]): Promise<Told> {
  const words = [kind, '127.0.0.1', String(port), ...more];
  return JSON.parse((await tryRun(await buildLoad(), words)).stdout) as Told;
}

it('a pause of the server is seen by every request that was due meanwhile, though none of them was sent', async () => {
  // 200 a second over one connection: of the second that is measured, half is a pause.
  const port = await serve((socket, asked) => {
    if (asked === 100) {
      setTimeout(() => socket.write(ANSWER), 500);
    } else {
      socket.write(ANSWER);
    }
  });
  const { done, p50Us, p99Us } = await load('paced', port, '1', '1', '200');
  expect(done).toBe(200);
  // A client that waits with its questions would have one slow answer in two hundred, and a p99 of under a millisecond.
  expect(p99Us).toBeGreaterThan(400_000);
  expect(p50Us).toBeGreaterThan(1);
});

it('what is counted is what the server answered', async () => {
  let answered = 0;
  const port = await serve((socket) => {
    answered += 1;
    socket.write(ANSWER);
  });
  const { total, done, failures } = await load('requests', port, '4', '0.5');
  expect(failures).toBe(0);
  expect(done).toBeGreaterThan(0);
  expect(done).toBeLessThan(total);
  // What was on its way in the end.
  expect(answered - total).toBeGreaterThanOrEqual(0);
  expect(answered - total).toBeLessThanOrEqual(4);
});

it('a connection whose answer is cut short is a failure', async () => {
  const port = await serve((socket) => socket.end(ANSWER.subarray(1)));
  const { done, failures, error } = await load('connects', port, '1', '0.2');
  expect(done).toBe(0);
  expect(failures).toBeGreaterThan(0);
  expect(error).toBe('ended early');
});

it('nobody there is a failure, and ends it', async () => {
  const { done, error } = await load('connects', 1, '1', '0.2');
  expect(done).toBe(0);
  expect(error).toBe('ECONNREFUSED');
});
