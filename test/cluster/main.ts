/**
 * A cluster to play with, until it is told to end:
 *
 *   make cluster        starts it, with the agent, the reference proxy and two apps that talk; says what to type next
 *   make cluster-down   ends it; nothing of it is left
 */

import { spawn } from 'node:child_process';
import { closeSync, existsSync, mkdirSync, openSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { setTimeout as delay } from 'node:timers/promises';
import { Lab } from '../lab/lab.js';
import { Cluster, type ProxyMode } from './cluster.js';

const ROOT = join(import.meta.dirname, '../..');
const FOLDER = join(ROOT, 'build/cluster');
const PID = join(FOLDER, 'pid');
const LOG = join(FOLDER, 'log');
const READY = join(FOLDER, 'ready');
const START_MS = 180_000;
const END_MS = 60_000;

/** Of the process that holds the cluster; undefined where none does. */
function holder(): number | undefined {
  const pid = existsSync(PID) ? Number(readFileSync(PID, 'utf8')) : undefined;
  // The number may be another process's by now.
  const isOurs = pid !== undefined && commandOf(pid).includes(import.meta.filename);
  return isOurs ? pid : undefined;
}

function commandOf(pid: number): string {
  const path = `/proc/${pid}/cmdline`;
  return existsSync(path) ? readFileSync(path, 'utf8') : '';
}

async function until(what: string, limitMs: number, condition: () => boolean): Promise<void> {
  const deadline = Date.now() + limitMs;
  while (!condition()) {
    if (Date.now() > deadline) {
      throw new Error(`waited ${limitMs / 1_000} s for ${what}; see ${LOG}`);
    }
    await delay(100);
  }
}

async function up(mode: string): Promise<void> {
  if (holder() !== undefined) {
    throw new Error('the cluster is up: make cluster-down ends it');
  }
  rmSync(FOLDER, { recursive: true, force: true });
  mkdirSync(FOLDER, { recursive: true });
  const log = openSync(LOG, 'a');
  const words = ['--import', 'tsx', import.meta.filename, 'hold', mode];
  const child = spawn(process.execPath, words, { cwd: ROOT, detached: true, stdio: ['ignore', log, log] });
  closeSync(log);
  child.unref();
  await until('the cluster', START_MS, () => {
    if (child.exitCode !== null) {
      throw new Error(`the cluster did not start:\n${readFileSync(LOG, 'utf8').slice(-3_000)}`);
    }
    return existsSync(READY);
  });
  process.stdout.write(readFileSync(READY, 'utf8'));
}

async function down(): Promise<void> {
  const pid = holder();
  if (pid === undefined) {
    process.stdout.write('cluster: none is up\n');
    return;
  }
  process.kill(pid, 'SIGTERM');
  await until('the cluster to end', END_MS, () => holder() === undefined);
  const said = readFileSync(LOG, 'utf8');
  if (!said.includes('\nended\n')) {
    throw new Error(`it did not end in order:\n${said.slice(-3_000)}`);
  }
  rmSync(FOLDER, { recursive: true, force: true });
  process.stdout.write('cluster: ended\n');
}

/** A command that can be typed. */
function wrapper(name: string, words: readonly string[]): string {
  const path = join(FOLDER, name);
  const quoted = words.map((word) => `'${word}'`).join(' ');
  writeFileSync(path, `#!/bin/sh\nexec ${quoted} "$@"\n`, { mode: 0o755 });
  return path.slice(ROOT.length + 1);
}

async function hold(mode: ProxyMode): Promise<void> {
  writeFileSync(PID, String(process.pid));
  const ended = new Promise((resolve) => process.once('SIGTERM', resolve).once('SIGINT', resolve));
  const startedMs = performance.now();
  const lab = await Lab.create();
  try {
    await lab.serve();
    const cluster = await Cluster.start(lab, { proxyMode: mode });
    await cluster.load(join(ROOT, 'build/nodesentry-image.tar'));
    await cluster.kubectl(['apply', '-k', join(ROOT, 'examples/cluster')]);
    const rollout = (namespace: string, what: string) =>
      cluster.kubectl(['-n', namespace, 'rollout', 'status', what, '--timeout=90s'], { timeoutMs: 100_000 });
    await rollout('nodesentry-system', 'daemonset/nodesentry');
    await rollout('nodesentry-system', 'daemonset/proxy');
    await rollout('shop', 'deployment/web');
    await rollout('shop', 'deployment/client');
    const kubectl = wrapper('kubectl', cluster.kubectlCommand([]));
    const inAgent = ['-n', 'nodesentry-system', 'exec', 'daemonset/nodesentry', '--', 'nodesentry'];
    const nodesentry = wrapper('nodesentry', cluster.kubectlCommand(inAgent));
    const pods = await cluster.kubectl([...inAgent, 'pods']);
    const { gitVersion } = JSON.parse(await cluster.kubectl(['get', '--raw', '/version']));
    const seconds = ((performance.now() - startedMs) / 1_000).toFixed(0);
    writeFileSync(
      `${READY}.new`,
      `cluster: up in ${seconds} s (Kubernetes ${gitVersion}, containerd 2, kube-proxy in ${mode} mode)

${pods}
What to type next:
  ${kubectl} get pods -A -o wide
  ${nodesentry} flows
  ${nodesentry} doctor
  ${kubectl} -n shop logs deployment/client --tail=3         what web saw: the proxy, not the client
  ${kubectl} -n nodesentry-system logs daemonset/proxy --tail=3   who was behind each flow
  make cluster-down
`,
    );
    writeFileSync(READY, readFileSync(`${READY}.new`));
    await ended;
  } finally {
    await lab.close();
  }
  process.stdout.write('\nended\n');
}

const [verb, mode = 'nftables'] = process.argv.slice(2);
try {
  await (verb === 'hold' ? hold(mode as ProxyMode) : verb === 'down' ? down() : up(mode));
} catch (error) {
  process.stderr.write(`cluster: ${(error as Error).message}\n`);
  process.exitCode = 1;
}
