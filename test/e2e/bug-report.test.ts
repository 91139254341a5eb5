/** `nodesentry bug-report` beside a real agent, in its container's place, and after the agent has gone. */

import { mkdirSync, readFileSync, symlinkSync } from 'node:fs';
import { join } from 'node:path';
import { beforeAll, describe, expect, it } from 'vitest';
import { parse } from 'yaml';
import { inNetns, run, tryRun } from '../lab/exec.js';
import { useScene } from './scene.js';

const SECRET = 'Annotation-Secret-41';
const scene = useScene({
  pods: [
    { name: 'web-0', topology: 'ptp' },
    { name: 'web-1', topology: 'bridge' },
  ],
  cri: { topology: 'ptp' },
  inbound: true,
});

interface Manifest {
  readonly node: string;
  readonly contents: readonly { name: string; note: string }[];
  readonly missing: readonly { name: string; why: string }[];
}

/** What tar(1) finds in the archive that a command line leaves at `archive`. */
class Report {
  readonly #folder: string;
  readonly manifest: Manifest;

  private constructor(folder: string) {
    this.#folder = folder;
    this.manifest = this.json('manifest.json') as Manifest;
  }

  static async of(archive: string): Promise<Report> {
    const folder = `${archive}.d`;
    mkdirSync(folder);
    await run('tar', ['xzf', archive, '-C', folder, '--strip-components=1']);
    return new Report(folder);
  }

  text(name: string): string {
    return readFileSync(join(this.#folder, name), 'utf8');
  }

  json(name: string): unknown {
    return JSON.parse(this.text(name));
  }

  missing(): string[] {
    return this.manifest.missing.map(({ name }) => name);
  }

  /** By grep(1): exit status 1 says that no file has it. */
  async has(text: string): Promise<boolean> {
    return (await tryRun('grep', ['-rqF', text, this.#folder])).code === 0;
  }
}

async function take(name: string): Promise<Report> {
  const archive = join(scene.lab.directory, `${name}.tgz`);
  const { code, stderr } = await scene.agent.cli('bug-report', '--output', archive);
  expect({ code, stderr }).toEqual({ code: 0, stderr: '' });
  return Report.of(archive);
}

/** What is in the kernel, by the node's tools. */
function expectKernel(report: Report): void {
  expect(report.text('kernel/ip-rule-4.txt')).toMatch(
    /^90:.*fwmark 0x40\/0x40 lookup 7340 (?:proto|protocol) 73/m,
  );
  expect(report.text('kernel/ip-rule-6.txt')).toMatch(/^90:.*fwmark 0x40\/0x40 lookup 7340/m);
  expect(report.text('kernel/ip-route-4.txt')).toMatch(/^local default dev lo table 7340 proto 73/m);
  expect(report.text('kernel/bpftool-prog.txt')).toMatch(/name pod_egress/);
}

/** The same by our own means. */
function expectView(report: Report): void {
  const ours = { priority: 90, table: 7340, mark: 0x40, mask: 0x40, protocol: 73 };
  expect(report.json('kernel/rules.json')).toMatchObject({
    IPv4: expect.arrayContaining([expect.objectContaining(ours)]),
    IPv6: expect.arrayContaining([expect.objectContaining(ours)]),
  });
  expect(report.json('kernel/routes.json')).toMatchObject({
    IPv4: { '7340': [{ type: 2, protocol: 73, prefixLength: 0 }] },
  });
  expect(report.text('kernel/nft.txt')).toContain('table inet nodesentry {');
  expect(report.text('kernel/nft.txt')).toContain(scene.pod('web-0').ips[4]);
  const attached = JSON.stringify(report.json('kernel/attached.json'));
  expect(attached).toContain('"name":"pod_egress"');
  const pins = report.json('kernel/pins.json') as { v1: Record<string, Record<string, { id?: number }>> };
  const each = Object.values(pins.v1).flatMap((kind) => Object.values(kind));
  expect(each.length).toBeGreaterThan(10);
  expect(each.filter(({ id }) => typeof id !== 'number')).toEqual([]);
  expect(report.text('kernel/sysctls.txt')).toMatch(/^net\/ipv4\/conf\/all\/rp_filter = \d$/m);
}

describe('with an agent', () => {
  let report: Report;
  beforeAll(async () => {
    await scene.expectAtProxy(scene.pod('web-0'));
    scene.describe(scene.pod('web-1'), { annotations: { 'example.com/x': SECRET } });
    report = await take('running');
  });

  it('has what the agent says: pods, flows, listeners, metrics, its process', async () => {
    expect(report.manifest.node).toBe('node-a');
    expect(report.text('status.txt')).toMatch(/^Ready: +yes$/m);
    expect(report.text('pods.txt')).toMatch(/web-0.*INTERCEPTED/);
    expect(report.text('flows.txt')).toContain('default/web-0');
    expect(report.text('doctor.txt')).toMatch(/^ok +kernel/m);
    const pods = report.json('api/pods.json') as { workloads: { podName: string }[] };
    expect(pods.workloads.map(({ podName }) => podName).sort()).toEqual(['web-0', 'web-1']);
    expect(report.json('api/ready.json')).toBeTruthy();
    expect(report.json('api/status.json')).toMatchObject({ pid: scene.agent.pid, ready: true });
    expect(report.text('api/metrics.txt')).toContain('nodesentry_packets_total');
    expect(report.text('process/status.txt')).toContain(`Pid:\t${scene.agent.pid}\n`);
    expect(report.text('state/run/listing.txt')).toMatch(/socket http\.sock$/m);
    expect(report.json('node/cri.json')).toMatchObject({ runtimeName: 'containerd' });
    const listeners = report.json('kernel/listeners.json') as { port: number }[];
    expect(listeners.map(({ port }) => port)).toContain(15001);
  });

  it('has what is in the kernel, by our own means and by those of the node', () => {
    expectKernel(report);
    expectView(report);
    expect(report.json('versions.json')).toMatchObject({ layout: 1, pinnedLayouts: [1] });
  });

  it('misses the log alone, which this lab keeps elsewhere', () => {
    // No journal of a unit, and no folder of a CNI plugin that was never installed.
    expect(report.missing().filter((name) => !/^(?:logs\/|cni\/|state\/cni\/)/.test(name))).toEqual([]);
  });

  it('takes out the annotations of pods, and nothing of the kernel', async () => {
    const { pods } = parse(report.text('configuration/pods.yaml')) as { pods: { annotations?: object }[] };
    expect(pods.flatMap(({ annotations }) => annotations ?? [])).toEqual([{ 'example.com/x': '(removed)' }]);
    expect(readFileSync(scene.agent.podsPath, 'utf8')).toContain(SECRET);
    expect(await report.has(SECRET)).toBe(false);
    for (const name of ['rules', 'routes', 'links', 'attached', 'pins', 'listeners']) {
      expect(report.text(`kernel/${name}.json`)).not.toContain('(removed)');
    }
    for (const name of ['status', 'pods', 'flows', 'services']) {
      expect(report.text(`api/${name}.json`)).not.toContain('(removed)');
    }
  });
});

it('with the capabilities and the tools of its container it has the same view, by stdout', async () => {
  const tools = join(scene.lab.directory, 'tools');
  mkdirSync(tools);
  symlinkSync(process.execPath, join(tools, 'node'));
  symlinkSync('/usr/sbin/nft', join(tools, 'nft'));
  const capabilities = '-all,+net_admin,+bpf,+perfmon,+sys_admin,+dac_read_search,+sys_ptrace';
  const { runDir, bpffs, configPath, objects, binary } = scene.agent;
  const globals = ['--run-dir', runDir, '--bpffs', bpffs, '--config', configPath, '--bpf-objects', objects];
  const limited = ['--no-new-privs', '--bounding-set', capabilities, '/usr/bin/env', `PATH=${tools}`];
  const command = ['setpriv', ...limited, binary, 'bug-report', '-o', '-', ...globals];
  const archive = join(scene.lab.directory, 'container.tgz');
  const shell = ['-c', 'out=$1; shift; "$@" > "$out"', 'sh', archive, ...command];
  const { code } = await tryRun(...inNetns(scene.lab.node, 'sh', shell));
  expect(code).toBe(0);
  const report = await Report.of(archive);
  expectView(report);
  expect(report.text('status.txt')).toMatch(/^Ready: +yes$/m);
  expect(report.missing()).toEqual(
    expect.arrayContaining([
      'kernel/ip-rule-4.txt',
      'kernel/bpftool-prog.txt',
      'kernel/tc.txt',
      'logs/journal.txt',
    ]),
  );
});

it('with the agent stopped it names what only an agent can tell, and has the rest', async () => {
  await scene.agent.stop();
  const report = await take('stopped');
  expectKernel(report);
  expectView(report);
  const why = new Map(report.manifest.missing.map(({ name, why: reason }) => [name, reason]));
  for (const name of ['status.txt', 'pods.txt', 'flows.txt', 'api/status.json', 'api/metrics.txt']) {
    expect(why.get(name), name).toContain('no agent answers');
  }
  expect(why.get('process/status.txt')).toBe('no agent is running');
  expect(report.text('configuration/config.yaml')).toContain('node: node-a');
  expect(report.text('state/run/files/addresses.ndjson')).toContain(scene.pod('web-0').ips[4]);
});
