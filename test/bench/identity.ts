/**
 * What asking who it is costs, by each door, in one go: getsockopt(2) in a loop of C on one accepted connection, beside an
 * option that the kernel answers alone; a look into the client's copy; HTTP and gRPC over their sockets, one question after
 * the other. Medians of the rounds, in which the doors take turns.
 *
 *   make bench-identity
 */

import { join } from 'node:path';
import { credentials, loadPackageDefinition } from '@grpc/grpc-js';
import { loadSync } from '@grpc/proto-loader';
import { IdentityClient } from '../../src/client/identity-client.js';
import { staticPod, TestAgent } from '../e2e/agent.js';
import { inCgroup, makeCgroup } from '../lab/cgroups.js';
import { createNetwork } from '../lab/cni.js';
import { inNetns, tryRun } from '../lab/exec.js';
import { buildApp } from '../lab/image.js';
import { Lab, REMOTE } from '../lab/lab.js';
import { runPlainPod } from '../lab/plain.js';
import { reply } from '../lab/pod.js';

const ROUNDS = 5;
const CALLS = 2_000;
const PROTO = join(import.meta.dirname, '../../proto');

const median = (values: readonly number[]) =>
  [...values].sort((a, b) => a - b)[Math.floor(values.length / 2)] ?? 0;
const quantile = (values: readonly number[], q: number) =>
  [...values].sort((a, b) => a - b)[Math.min(values.length - 1, Math.floor(values.length * q))] ?? 0;

type Row = { readonly p50: number; readonly p99: number };

async function timed(call: () => unknown): Promise<Row> {
  const took: number[] = [];
  for (let i = 0; i < CALLS; i++) {
    const started = performance.now();
    await call();
    took.push(performance.now() - started);
  }
  return { p50: quantile(took, 0.5), p99: quantile(took, 0.99) };
}

/** Without waiting for anything: a call is shorter than the clock is fine. */
function timedAtOnce(call: () => unknown): Row {
  const took: number[] = [];
  for (let i = 0; i < 100_000; i++) {
    const started = process.hrtime.bigint();
    call();
    took.push(Number(process.hrtime.bigint() - started) / 1e6);
  }
  return { p50: quantile(took, 0.5), p99: quantile(took, 0.99) };
}

const lab = await Lab.create();
try {
  await lab.serve();
  const web = await runPlainPod(lab, createNetwork(lab, 'ptp'), 'web');
  const agent = new TestAgent(lab, { sources: { static: { file: 'pods.yaml' } } });
  agent.writePods([staticPod(web)]);
  await agent.start();
  const app = await buildApp();
  // In a cgroup of its own, so that a socket without our program can be measured beside it.
  const command = [app, 'option-costs', '127.0.0.1', '15001'];
  lab.daemon(lab.node, 'proxy', 'sh', inCgroup(makeCgroup(lab, 'bench'), command));
  await agent.adopted(1);
  await agent.reaches('web', 'INTERCEPTED');

  const dial = async () => reply(await tryRun(...inNetns(web.netnsName, app, ['dial', REMOTE[4], '80'])));
  const { localPort } = await dial();
  const src = { ip: web.ips[4], port: Number(localPort) };
  const dst = { ip: REMOTE[4], port: 80 };
  const client = new IdentityClient({ socket: join(agent.runDir, 'http.sock') });
  await new Promise<void>((resolve) => (client.synced ? resolve() : client.once('synced', resolve)));
  const definition = loadSync('nodesentry/identity/v1/identity.proto', {
    includeDirs: [PROTO],
    keepCase: false,
  });
  // biome-ignore lint/suspicious/noExplicitAny: what loadPackageDefinition makes has no types
  const { Identity } = (loadPackageDefinition(definition) as any).nodesentry.identity.v1;
  const grpc = new Identity(`unix:${join(agent.runDir, 'identity.sock')}`, credentials.createInsecure());
  const flow = { proto: 'tcp', src: `${src.ip}:${src.port}`, dst: `${dst.ip}:${dst.port}` };
  const byGrpc = () =>
    new Promise<void>((resolve, reject) =>
      grpc.Resolve({ flow }, (error: Error | null) => (error === null ? resolve() : reject(error))),
    );

  const bare: number[] = [];
  const costs: Record<string, number>[] = [];
  const rows: Record<'copy' | 'http' | 'grpc', Row[]> = { copy: [], http: [], grpc: [] };
  for (let round = 0; round < ROUNDS; round++) {
    bare.push(Number(reply(await tryRun(app, ['bare-cost'])).SO_TYPE));
    costs.push((await dial()).server as Record<string, number>);
    rows.copy.push(timedAtOnce(() => client.byAddress(web.ips[4])));
    rows.http.push(await timed(() => client.resolve({ proto: 'tcp', src, dst })));
    rows.grpc.push(await timed(byGrpc));
  }
  const ns = (name: string) => `${median(costs.map((cost) => cost[name] ?? Number.NaN))} ns`;
  const ms = (list: readonly Row[]) =>
    `p50 ${(median(list.map(({ p50 }) => p50)) * 1_000).toFixed(1)} µs, p99 ${(median(list.map(({ p99 }) => p99)) * 1_000).toFixed(1)} µs`;
  process.stdout.write(
    [
      `getsockopt, SO_TYPE where no program is           ${median(bare)} ns`,
      `getsockopt, SO_TYPE                               ${ns('SO_TYPE')}`,
      `getsockopt, the peer's SPIFFE ID                  ${ns('id')}`,
      `getsockopt, the peer as a struct                  ${ns('end')}`,
      `getsockopt, SO_ORIGINAL_DST                       ${ns('originalDst')}`,
      `nodesentry/client, from its copy                  ${ms(rows.copy)}`,
      `HTTP, one after the other                         ${ms(rows.http)}`,
      `gRPC, one after the other                         ${ms(rows.grpc)}`,
      '',
    ].join('\n'),
  );
  await client.close();
  grpc.close();
} finally {
  await lab.close();
}
