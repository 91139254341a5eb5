/**
 * Asks so many questions a second over HTTP or gRPC for so long, on connections that stay open, and prints a line of JSON:
 * how many were answered, how long they took from when they were due, and how many were late to be sent.
 *
 *   tsx test/bench/ask.ts http|grpc SOCKET RATE SECONDS SRC DST
 */

import { Agent, request } from 'node:http';
import { join } from 'node:path';
import { setTimeout as delay } from 'node:timers/promises';
import { credentials, loadPackageDefinition } from '@grpc/grpc-js';
import { loadSync } from '@grpc/proto-loader';

const CONNECTIONS = 8;
const TURN_MS = 2;

const [door, socketPath = '', rate, seconds, src = '', dst = ''] = process.argv.slice(2);
const perTurn = (Number(rate) * TURN_MS) / 1_000;

function byHttp(): () => Promise<void> {
  const agent = new Agent({ keepAlive: true, maxSockets: CONNECTIONS });
  const path = `/v1/resolve?proto=tcp&src=${src}&dst=${dst}`;
  return () =>
    new Promise((resolve, reject) => {
      request({ socketPath, agent, path, headers: { 'nodesentry.io': 'true' } }, (response) => {
        response.resume().once('end', () => {
          response.statusCode === 200 ? resolve() : reject(new Error(`status ${response.statusCode}`));
        });
      })
        .once('error', reject)
        .end();
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
  `${JSON.stringify({ perSecond: Math.round(took.length / elapsed), failures, p50: quantile(0.5), p99: quantile(0.99) })}\n`,
);
process.exit(0);
