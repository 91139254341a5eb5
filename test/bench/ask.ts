/**
 * Asks so many questions a second over HTTP, one by one or in batches, or over gRPC for so long, on connections that stay open,
 * and prints a line of JSON: how many were answered, and how long they took from when they were due.
 *
 *   tsx test/bench/ask.ts http|batch|grpc SOCKET RATE SECONDS SRC DST
 */

import { connect, type Socket } from 'node:net';
import { join } from 'node:path';
import { setTimeout as delay } from 'node:timers/promises';
import { credentials, loadPackageDefinition } from '@grpc/grpc-js';
import { loadSync } from '@grpc/proto-loader';

const CONNECTIONS = 8;
const TURN_MS = 2;

const [door, socketPath = '', rate, seconds, src = '', dst = ''] = process.argv.slice(2);
const size = door === 'batch' ? 50 : 1;
const perTurn = (Number(rate) * TURN_MS) / 1_000 / size;

interface Waiting {
  readonly resolve: () => void;
  readonly reject: (error: Error) => void;
}

/** The bytes of the request are made once, and of the answer the length is read: a client's own work is not measured. */
function byHttp(): () => Promise<void> {
  const body = JSON.stringify({ queries: Array.from({ length: size }, () => ({ proto: 'tcp', src, dst })) });
  const headers = 'HTTP/1.1\r\nHost: node\r\nnodesentry.io: true';
  const bytes = Buffer.from(
    door === 'batch'
      ? `POST /v1/resolve:batch ${headers}\r\nContent-Type: application/json\r\nContent-Length: ${body.length}\r\n\r\n${body}`
      : `GET /v1/resolve?proto=tcp&src=${src}&dst=${dst} ${headers}\r\n\r\n`,
  );
  const waiting: Waiting[] = [];
  const free: Socket[] = [];
  const sendOne = () => {
    const next = free.length > 0 ? waiting.shift() : undefined;
    const socket = next && free.pop();
    if (next !== undefined && socket !== undefined) {
      asked.set(socket, next);
      socket.write(bytes);
    }
  };
  const asked = new Map<Socket, Waiting>();
  for (let n = 0; n < CONNECTIONS; n++) {
    const socket = connect(socketPath);
    let got = '';
    socket.setEncoding('latin1').on('data', (chunk: string) => {
      got += chunk;
      const head = got.indexOf('\r\n\r\n');
      const length = /content-length: (\d+)/i.exec(got)?.[1];
      if (head < 0 || got.length < head + 4 + Number(length)) {
        return;
      }
      const one = asked.get(socket);
      got.startsWith('HTTP/1.1 200') ? one?.resolve() : one?.reject(new Error(got.slice(0, 20)));
      got = '';
      free.push(socket);
      sendOne();
    });
    free.push(socket);
  }
  return () =>
    new Promise((resolve, reject) => {
      waiting.push({ resolve, reject });
      sendOne();
    });
}

function byGrpc(): () => Promise<void> {
  const definition = loadSync('nodesentry/identity/v1/identity.proto', {
    includeDirs: [join(import.meta.dirname, '../../proto')],
  });
  // biome-ignore lint/suspicious/noExplicitAny: what loadPackageDefinition makes has no types
  const { Identity } = (loadPackageDefinition(definition) as any).nodesentry.identity.v1;
  const clients = Array.from(
    { length: CONNECTIONS },
    (_, n) =>
      new Identity(`unix:${socketPath}`, credentials.createInsecure(), { 'nodesentry.connection': n }),
  );
  const flow = { proto: 'tcp', src, dst };
  let turn = 0;
  return () =>
    new Promise((resolve, reject) => {
      turn += 1;
      clients[turn % CONNECTIONS].Resolve({ flow }, (error: Error | null) =>
        error === null ? resolve() : reject(error),
      );
    });
}

const ask = door === 'grpc' ? byGrpc() : byHttp();
await ask();
const took: number[] = [];
let failures = 0;
const pending: Promise<void>[] = [];
const startedMs = performance.now();
const turns = Math.floor((Number(seconds) * 1_000) / TURN_MS);
for (let turn = 0, asked = 0; turn < turns; turn++) {
  const dueMs = startedMs + turn * TURN_MS;
  const waitMs = dueMs - performance.now();
  if (waitMs > 0) {
    await delay(waitMs);
  }
  for (; asked < (turn + 1) * perTurn; asked++) {
    pending.push(
      ask().then(
        () => void took.push(performance.now() - dueMs),
        () => {
          failures += 1;
        },
      ),
    );
  }
}
await Promise.all(pending);
took.sort((a, b) => a - b);
const quantile = (q: number) => took[Math.min(took.length - 1, Math.floor(took.length * q))];
const elapsed = (performance.now() - startedMs) / 1_000;
process.stdout.write(
  `${JSON.stringify({ perSecond: Math.round((took.length * size) / elapsed), failures, p50: quantile(0.5), p99: quantile(0.99) })}\n`,
);
process.exit(0);
