import { execFileSync, spawn } from 'node:child_process';
import { chmodSync, existsSync, readFileSync, statSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { afterEach, beforeEach, describe, expect, it } from 'vitest';
import type { Instance, InstanceRun } from '../../src/config/config.js';
import { parseConfig } from '../../src/config/load.js';
import { closeFd } from '../../src/native/descriptors.js';
import { openListener, socketInfo, socketOwners, tcpListeners } from '../../src/native/sockets.js';
import { KEPT_BYTES } from '../../src/supervise/output.js';
import { isAlive, processIdOf } from '../../src/supervise/processes.js';
import { type ProcessMessage, readMessages, statePath } from '../../src/supervise/state.js';
import { Supervisor } from '../../src/supervise/supervisor.js';
import { waitFor } from '../lab/exec.js';
import { Cleanup, Netns, temporaryFolder } from './native-lab.js';

const cleanup = new Cleanup();
let folder: string;
let netns: Netns;
let instances: readonly Instance[];
let wanted: Set<string> | undefined;
/** What the clock is ahead of the real one: nobody waits half a minute for a grace to be over. */
/** The clock: it stands, whatever the machine is busy with, unless a test moves it. */
let clockMs: number;
let opened: number;
let logged: { readonly fields: Record<string, unknown>; readonly message: string }[];
let supervisor: Supervisor;

const SLEEP = ['/bin/sleep', '600'];
/** Says who it is to whoever connects. */
const SERVER = `
const { LISTEN_PID, LISTEN_FDS, LISTEN_FDNAMES } = process.env;
const hello = [LISTEN_PID === String(process.pid), LISTEN_FDS, LISTEN_FDNAMES, process.getuid()].join(' ');
require('node:net').createServer((socket) => socket.end(hello)).listen({ fd: 3 });
console.log('serving');
`;

beforeEach(() => {
  folder = join(temporaryFolder(cleanup), 'instances');
  netns = cleanup.owned(new Netns());
  instances = [];
  wanted = new Set();
  clockMs = 1_000_000;
  logged = [];
  opened = 0;
  supervise();
  cleanup.add(undefined, () => {
    supervisor.close();
    for (const { pid } of readMessages(folder)) {
      if (pid !== null) {
        process.kill(-pid, 'SIGKILL');
      }
    }
  });
});

afterEach(() => cleanup.run());

function supervise(): void {
  const tell = (fields: object, message: string) =>
    void logged.push({ fields: fields as Record<string, unknown>, message });
  supervisor = new Supervisor({
    folder,
    instances: () => instances,
    wanted: () => wanted,
    nowMs: () => clockMs,
    listening: () => {
      opened += 1;
    },
    log: { info: tell, warn: tell, error: tell },
  });
}

/** By the configuration's own words. */
function instance(command: readonly string[], run: object = {}, name = 'pay', port = 16001): Instance {
  const given = { name, outbound: `127.0.0.1:${port}`, command, run };
  const [found] = parseConfig(`sources: {cri: {}}\ninstances: ${JSON.stringify([given])}`, 'file').instances;
  return found as Instance;
}

function withRun(given: Instance, run: Partial<InstanceRun>): Instance {
  return { ...given, run: { ...(given.run as InstanceRun), ...run } };
}

const look = () => netns.run(() => supervisor.look());
const message = (name = 'pay') => supervisor.messages().find((found) => found.name === name);

/** Looks until it is so, while time goes by. */
function until(what: string, condition: (message: ProcessMessage) => boolean): Promise<ProcessMessage> {
  return waitFor(what, () => {
    clockMs += 50;
    look();
    const found = message();
    return found !== undefined && condition(found) && found;
  });
}

async function started(): Promise<number> {
  const { pid } = await until('a process', (found) => found.pid !== null);
  return pid ?? 0;
}

const lines = () => logged.filter(({ fields }) => fields.stream !== undefined);
const commandOf = (pid: number) => readFileSync(`/proc/${pid}/cmdline`, 'utf8').split('\0').join(' ').trim();
const gone = (pid: number) => processIdOf(pid) === undefined;

describe('an instance with a command', () => {
  it('runs from the first pod to a while after the last', async () => {
    instances = [instance(SLEEP, { sockets: 'own', graceSeconds: 30 })];
    look();
    expect(message()).toMatchObject({ state: 'STOPPED', pid: null });
    wanted = new Set(['pay']);
    look();
    expect(message()).toMatchObject({ state: 'STARTING', restarts: 0 });
    const { pid, memoryBytes } = await until('it to run', ({ state }) => state === 'RUNNING');
    await waitFor('it to be the command', () => commandOf(pid ?? 0) === '/bin/sleep 600');
    expect(memoryBytes).toBeGreaterThan(10_000);
    wanted = new Set();
    look();
    clockMs += 29_000;
    look();
    expect(message()).toMatchObject({ state: 'RUNNING', pid });
    clockMs += 2_000;
    look();
    await until('it to stop', ({ state }) => state === 'STOPPED');
    expect(gone(pid ?? 0)).toBe(true);
    expect(message()).toMatchObject({ pid: null, restarts: 0, lastExit: 'SIGTERM', memoryBytes: 0 });
  });

  it('is started again when it dies, later and later', async () => {
    instances = [instance(['/bin/sh', '-c', 'exit 3'], { sockets: 'own' })];
    wanted = new Set(['pay']);
    const waits = [100, 200, 400, 800, 1_600, 3_200, 6_400, 12_800, 25_600, 30_000, 30_000];
    for (const [index, waitMs] of waits.entries()) {
      look();
      await waitFor('its end', () => message()?.restarts === index + 1 && message()?.state === 'BACKOFF');
      expect(message()?.lastExit).toBe('exit code 3');
      clockMs += waitMs - 1;
      look();
      expect(message()?.state).toBe('BACKOFF');
      clockMs += 1;
    }
  });

  it('that has run for a minute starts at once again', async () => {
    instances = [instance(SLEEP, { sockets: 'own' })];
    wanted = new Set(['pay']);
    for (const [round, lastedMs] of [0, 0, 60_000].entries()) {
      const pid = await started();
      clockMs += lastedMs;
      process.kill(pid, 'SIGKILL');
      await waitFor('its end', () => message()?.restarts === round + 1);
      expect(message()?.lastExit).toBe('SIGKILL');
      clockMs += lastedMs === 0 ? 30_000 : 100;
    }
    look();
    expect(message()?.state).toBe('STARTING');
  });

  it('that does not stop is killed, and its children with it', async () => {
    const script = `trap '' TERM; sleep 601 & echo $!; wait; wait`;
    instances = [instance(['/bin/sh', '-c', script], { sockets: 'own', graceSeconds: 0, stopSeconds: 5 })];
    wanted = new Set(['pay']);
    const pid = await started();
    await until('its child', () => lines().length > 0);
    wanted = new Set();
    look();
    expect(message()?.state).toBe('STOPPING');
    clockMs += 4_000;
    look();
    expect(gone(pid)).toBe(false);
    clockMs += 1_001;
    await until('its end', ({ state }) => state === 'STOPPED');
    expect(message()?.lastExit).toBe('SIGKILL');
    await waitFor('the end of its child', () => gone(Number(lines()[0]?.message)));
  });

  it('is the same process for the next supervisor, which notices its end', async () => {
    instances = [instance(SLEEP, { sockets: 'own', graceSeconds: 0 })];
    wanted = new Set(['pay']);
    const pid = await started();
    supervisor.close();
    wanted = undefined;
    supervise();
    look();
    expect(message()).toMatchObject({ pid, restarts: 0 });
    wanted = new Set(['pay']);
    look();
    expect(message()).toMatchObject({ pid, restarts: 0 });
    process.kill(pid, 'SIGKILL');
    await until('its end', ({ restarts }) => restarts === 1);
    expect(message()?.lastExit).toBe('not known (it was adopted)');
    expect(await started()).not.toBe(pid);
  });

  it('is not taken for another process that has its number by now', () => {
    const other = spawn('/bin/sleep', ['600'], { detached: true, stdio: 'ignore' });
    cleanup.add(other, () => other.kill('SIGKILL'));
    instances = [instance(SLEEP, { sockets: 'own' })];
    wanted = new Set(['pay']);
    look();
    supervisor.close();
    const kept = JSON.parse(readFileSync(statePath(folder, 'pay'), 'utf8'));
    process.kill(-kept.process.pid, 'SIGKILL');
    writeFileSync(
      statePath(folder, 'pay'),
      JSON.stringify({ ...kept, process: { pid: other.pid, startTime: 1 } }),
    );
    expect(readMessages(folder)).toMatchObject([{ state: 'STOPPED', pid: null }]);
    supervise();
    wanted = new Set();
    look();
    expect(message()).toMatchObject({ pid: null, lastExit: 'not known (it was adopted)' });
    expect(gone(other.pid ?? 0)).toBe(false);
  });

  it('is started again when its command changes, and not for another grace', async () => {
    const first = instance(SLEEP, { sockets: 'own' });
    instances = [first];
    wanted = new Set(['pay']);
    const pid = await started();
    instances = [withRun(first, { graceSeconds: 7 })];
    look();
    expect(message()).toMatchObject({ pid });
    instances = [withRun(first, { command: ['/bin/sleep', '602'] })];
    look();
    expect(message()?.state).toBe('STOPPING');
    const next = await until('the other', (found) => found.pid !== null && found.pid !== pid);
    await waitFor('the command', () => commandOf(next.pid ?? 0) === '/bin/sleep 602');
    expect(next.restarts).toBe(0);
  });

  it('is stopped, and forgotten, when it is no longer in the list', async () => {
    instances = [instance(SLEEP, { sockets: 'own', graceSeconds: 10 })];
    wanted = new Set(['pay']);
    const pid = await started();
    instances = [];
    look();
    expect(message()).toMatchObject({ pid });
    clockMs += 10_001;
    await waitFor('it to be forgotten', () => {
      look();
      return message() === undefined;
    });
    expect(gone(pid)).toBe(true);
    expect(existsSync(statePath(folder, 'pay'))).toBe(false);
  });
});

describe('what it writes', () => {
  it('is in the log under its name, by stream, once', async () => {
    const script = 'echo one; echo two >&2; printf three; sleep 600';
    instances = [instance(['/bin/sh', '-c', script], { sockets: 'own' })];
    wanted = new Set(['pay']);
    const pid = await started();
    await until('two lines', () => lines().length === 2);
    supervisor.close();
    supervise();
    process.kill(-pid, 'SIGKILL');
    await until('its end', ({ restarts }) => restarts === 1);
    expect(lines().sort((a, b) => a.message.localeCompare(b.message))).toEqual([
      { fields: { instance: 'pay', stream: 'stdout' }, message: 'one' },
      { fields: { instance: 'pay', stream: 'stdout' }, message: 'three' },
      { fields: { instance: 'pay', stream: 'stderr' }, message: 'two' },
    ]);
  });

  it('does not fill the disk, however much it is', async () => {
    const count = 40_000;
    const script = `i=0; while [ $i -lt ${count} ]; do echo "a line of no great length number $i"; i=$((i+1)); done; sleep 600`;
    instances = [instance(['/bin/sh', '-c', script], { sockets: 'own' })];
    wanted = new Set(['pay']);
    look();
    let most = 0;
    await until('the last line', () => {
      most = Math.max(most, statSync(join(folder, 'pay.stdout.log')).size);
      return (
        lines()
          .at(-1)
          ?.message.endsWith(`number ${count - 1}`) === true
      );
    });
    expect(lines().length).toBeGreaterThan(count * 0.95); // what was written while the file was cut is lost
    expect(most).toBeGreaterThan(KEPT_BYTES / 4);
    await until('the file to be cut', () => statSync(join(folder, 'pay.stdout.log')).size <= KEPT_BYTES);
  });
});

describe('sockets that are handed over', () => {
  const served = () => netns.exec('socat', '-T5', 'TCP:127.0.0.1:16001', '-');
  const server = () => instance([process.execPath, '-e', SERVER], { user: 65_534, group: 65_534 });

  it('are those of systemd, transparent, and opened by the supervisor whoever serves them', async () => {
    instances = [server()];
    wanted = new Set(['pay']);
    const pid = await started();
    expect(served()).toBe('true 1 outbound 65534');
    const [listener] = netns.run(tcpListeners);
    expect(listener).toMatchObject({ address: '127.0.0.1', port: 16001, uid: 0, transparent: true });
    expect(await socketOwners([listener?.inode ?? 0])).toMatchObject([{ pid, fd: 3 }]);
  });

  it('keep who connects while it is away, and so do those that were taken over', async () => {
    instances = [server()];
    wanted = new Set(['pay']);
    for (const takenOver of [false, true]) {
      const pid = await started();
      await until('it to serve', () => lines().length > 0);
      if (takenOver) {
        supervisor.close();
        supervise();
        look();
        expect(message()).toMatchObject({ pid });
      }
      process.kill(pid, 'SIGKILL');
      await waitFor('its end', () => gone(pid));
      const client = spawn('nsenter', [`--net=${netns.path}`, 'socat', '-T9', 'TCP:127.0.0.1:16001', '-']);
      cleanup.add(client, () => client.kill('SIGKILL'));
      let answer = '';
      client.stdout.on('data', (bytes) => {
        answer += bytes;
      });
      await waitFor('the connection to wait', () => /ESTAB/.test(netns.exec('ss', '-Htn', 'dport = 16001')));
      await until('an answer', () => answer !== '');
      expect(answer).toBe('true 1 outbound 65534');
      clockMs += 60_000;
      look();
      expect(opened).toBe(1);
    }
  });

  it('are closed when nobody is to serve them', async () => {
    instances = [withRun(server(), { graceSeconds: 0 })];
    wanted = new Set(['pay']);
    await started();
    wanted = new Set();
    await until('it to stop', ({ state }) => state === 'STOPPED');
    expect(netns.run(tcpListeners)).toEqual([]);
  });

  it('that somebody else has are waited for', async () => {
    const taken = netns.run(() => openListener('127.0.0.1', 16001));
    instances = [server()];
    wanted = new Set(['pay']);
    look();
    expect(message()).toMatchObject({ state: 'BACKOFF', pid: null });
    expect(message()?.problem).toMatch(/^listening at 127.0.0.1 port 16001: Address already in use/);
    closeFd(taken);
    clockMs += 100;
    await started();
    expect(message()?.problem).toBe('');
  });

  it.each([
    ['127.0.0.1', true, false],
    ['::1', true, true],
    ['::', false, false],
  ])('at %s', (host, v6only, expected) => {
    const fd = netns.run(() => openListener(host, 17_000, { v6only }));
    cleanup.add(fd, closeFd);
    expect(socketInfo(fd)).toMatchObject({
      address: host,
      port: 17_000,
      listening: true,
      transparent: true,
      v6only: expected,
    });
  });
});

describe('what cannot be started says so, and has no listener', () => {
  const file = () => join(folder, 'tool');
  it.each([
    ['a command that is not there', (): Instance => instance([file()]), /^command: there is no executable /],
    ['a folder for a command', () => instance(['/usr']), /^command: there is no executable \/usr$/],
    [
      'a command that may not be executed',
      () => {
        writeFileSync(file(), '#!/bin/sh\n');
        chmodSync(file(), 0o600);
        return instance([file()]);
      },
      /^command: .* may not be executed: run "chmod \+x /,
    ],
    [
      'a directory that is not there',
      () => instance(SLEEP, { directory: '/nowhere/at/all' }),
      /^run.directory: there is no folder \/nowhere\/at\/all$/,
    ],
  ])('%s', async (_what, declared, problem) => {
    instances = [declared()];
    wanted = new Set(['pay']);
    look();
    expect(message()).toMatchObject({ state: 'FAILED', pid: null, problem: expect.stringMatching(problem) });
    expect(netns.run(tcpListeners)).toEqual([]);
    expect(logged.filter(({ message }) => message === 'instance not started')).toHaveLength(1);
    instances = [instance(SLEEP)];
    clockMs += 100;
    await started();
  });

  it('a limit on a node without cgroup v2 for it; on others it is heeded', async () => {
    const command = [
      process.execPath,
      '-e',
      'const kept = []; for (;;) kept.push(Buffer.alloc(1 << 20, 1));',
    ];
    instances = [instance(command, { limits: { memory: '96Mi' } })];
    wanted = new Set(['pay']);
    if (hasMemoryController()) {
      await until('its end', ({ restarts }) => restarts > 0);
      expect(message()?.lastExit).toBe('out of memory');
    } else {
      look();
      expect(message()).toMatchObject({
        state: 'FAILED',
        problem: 'limits: this node has no cgroup v2 with the controller memory',
      });
    }
  });
});

it('one that is in trouble does not keep the others from being looked after', async () => {
  instances = [instance(['/nowhere'], {}, 'broken', 16_002), instance(SLEEP, { sockets: 'own' })];
  wanted = new Set(['pay', 'broken']);
  const pid = await started();
  expect(message('broken')?.state).toBe('FAILED');
  expect(isAlive({ pid, startTime: processIdOf(pid)?.startTime ?? 0 })).toBe(true);
});

function hasMemoryController(): boolean {
  return execFileSync('sh', [
    '-c',
    'cat /sys/fs/cgroup/cgroup.controllers /sys/fs/cgroup/unified/cgroup.controllers 2>/dev/null || true',
  ])
    .toString()
    .split(/\s+/)
    .includes('memory');
}
