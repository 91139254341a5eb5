/** What docs/capabilities.md says of the agent under another user id, tried. */

import { chownSync, mkdirSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { afterEach, beforeEach, expect, it } from 'vitest';
import { ApiClient } from '../../src/api/client.js';
import { CAPABILITIES } from '../../src/kernel/capabilities.js';
import { type Daemon, inNetns, run, runIn, tryRun, waitFor } from '../lab/exec.js';
import { Lab } from '../lab/lab.js';

const UID = 65_532;
const CLI = join(import.meta.dirname, '../../bin/nodesentry');

let lab: Lab;
let runDir: string;
let bpffs: string;

beforeEach(async () => {
  lab = await Lab.create();
  await run('chmod', ['755', lab.directory]);
  [runDir, bpffs] = [join(lab.directory, 'run'), join(lab.directory, 'bpf')];
  mkdirSync(runDir, { mode: 0o755 });
  mkdirSync(bpffs);
  await run('mount', ['-t', 'bpf', '-o', 'mode=0755', 'bpf', bpffs]);
  lab.cleanup.add('bpffs', () => run('umount', [bpffs]));
  lab.cleanup.add('what the agent left', () => runIn(lab.node, CLI, ['cleanup', ...places()]));
  writeFileSync(join(lab.directory, 'config.yaml'), 'sources: {static: {file: pods.yaml}}\n');
  writeFileSync(join(lab.directory, 'pods.yaml'), 'pods: []\n');
});

afterEach(async () => {
  await lab?.close();
});

function places(): string[] {
  const config = join(lab.directory, 'config.yaml');
  return ['--run-dir', runDir, '--bpffs', join(bpffs, 'nodesentry'), '--config', config];
}

/** As systemd's User= and AmbientCapabilities= would start it: our list, and nothing else. */
function asUser(): [string, string[]] {
  const set = ['-all', ...CAPABILITIES.map(({ name }) => `+${name.slice(4).toLowerCase()}`)].join(',');
  const sets = ['--inh-caps', set, '--ambient-caps', set, '--bounding-set', set];
  const user = [`--reuid=${UID}`, `--regid=${UID}`, '--clear-groups', '--no-new-privs'];
  return ['setpriv', [...user, ...sets, CLI, 'agent', '--no-mount-bpffs', ...places()]];
}

it('is refused what belongs to root, in one line that names the file', async () => {
  const { code, stderr } = await tryRun(...inNetns(lab.node, ...asUser()));
  expect(code).toBe(1);
  expect(stderr.trim().split('\n')).toHaveLength(1);
  expect(stderr).toContain(`EACCES: permission denied, open '${runDir}/agent.pid'`);
});

it('works with ambient capabilities where the run directory and bpffs are its own', async () => {
  for (const path of [runDir, bpffs]) {
    chownSync(path, UID, UID);
  }
  const client = new ApiClient({ runDir });
  lab.cleanup.add('API client', () => client.close());
  const agent: Daemon = lab.daemon(lab.node, 'agent', ...asUser());
  await agent.logged(/"msg":"agent running"/, 30_000);
  const status = await waitFor('an answer', () => client.status().catch(() => undefined));
  expect(status).toMatchObject({ ready: true, blockers: [] });
  await agent.stop();
});

it('does not mount a bpffs that would end with its container', async () => {
  await run('umount', [bpffs]);
  const { code, stderr } = await tryRun(
    ...inNetns(lab.node, CLI, ['agent', '--no-mount-bpffs', ...places()]),
  );
  await run('mount', ['-t', 'bpf', 'bpf', bpffs]);
  expect(code).toBe(1);
  expect(stderr).toBe(`nodesentry: ${bpffs} is not a bpffs: run "mount -t bpf bpf ${bpffs}" on the node\n`);
});
