/** `nodesentry bug-report`, through bin/nodesentry as it is built, in a network namespace of its own. */

import { execFileSync } from 'node:child_process';
import {
  existsSync,
  mkdirSync,
  readdirSync,
  readFileSync,
  statSync,
  symlinkSync,
  writeFileSync,
} from 'node:fs';
import { join } from 'node:path';
import { afterEach, beforeEach, describe, expect, test } from 'vitest';
import { stringify } from 'yaml';
import { collect } from '../../src/bug-report/collect.js';
import { runCommand } from '../../src/bug-report/command.js';
import type { Part } from '../../src/bug-report/part.js';
import { redact } from '../../src/bug-report/redaction.js';
import { Secrets } from '../../src/bug-report/secrets.js';
import { type Output, tryRun } from '../lab/exec.js';
import { Cleanup, Netns, temporaryFolder } from './native-lab.js';

const CLI = join(process.cwd(), 'bin/nodesentry');

let cleanup: Cleanup;
let netns: Netns;
let folder: string;
beforeEach(() => {
  cleanup = new Cleanup();
  netns = cleanup.owned(new Netns());
  folder = temporaryFolder(cleanup);
  for (const name of ['run/cni', 'net.d', 'cni-state', 'out']) {
    mkdirSync(join(folder, name), { recursive: true });
  }
  write('pods.yaml', 'pods: []\n');
  configure();
});
afterEach(() => cleanup.run());

function write(name: string, text: string): void {
  writeFileSync(join(folder, name), text);
}

function configure(comment = ''): void {
  const cni = { confDir: join(folder, 'net.d'), binDir: folder, stateDir: join(folder, 'cni-state') };
  const sources = { static: { file: 'pods.yaml' }, kubernetes: { kubeconfig: 'kubeconfig' }, cni };
  write('config.yaml', `${comment}\n${stringify({ node: 'node-a', sources })}`);
}

function bugReport(words: readonly string[], env: Record<string, string> = {}): Promise<Output> {
  const places = ['--config', join(folder, 'config.yaml'), '--run-dir', join(folder, 'run')];
  const variables = Object.entries(env).map(([name, value]) => `${name}=${value}`);
  const args = [`--net=${netns.path}`, `--wd=${join(folder, 'out')}`, '/usr/bin/env', ...variables];
  const command = [CLI, 'bug-report', ...words, ...places, '--bpffs', join(folder, 'bpf')];
  return tryRun('nsenter', [...args, ...command]);
}

/** Every file of the archive by its name, the first first, as tar(1) finds them. */
function unpacked(archive: string): Map<string, string> {
  const target = join(folder, `unpacked-${readdirSync(folder).length}`);
  mkdirSync(target);
  execFileSync('tar', ['xzf', archive, '-C', target]);
  const names = execFileSync('tar', ['tzf', archive], { encoding: 'utf8' }).trim().split('\n');
  return new Map(
    names.map((name) => [name.slice(name.indexOf('/') + 1), readFileSync(join(target, name), 'latin1')]),
  );
}

interface Manifest {
  readonly contents: readonly { name: string; bytes: number; from: string; note: string }[];
  readonly missing: readonly { name: string; from: string; why: string }[];
}

function manifestOf(files: ReadonlyMap<string, string>): Manifest {
  return JSON.parse(files.get('manifest.json') ?? '') as Manifest;
}

describe('the command', () => {
  test('writes an archive whose first file lists the others, readable by its owner alone, and prints the list', async () => {
    const { code, stdout, stderr } = await bugReport([]);
    expect({ code, stderr }).toEqual({ code: 0, stderr: '' });
    const [name = '', ...more] = readdirSync(join(folder, 'out'));
    expect(more).toEqual([]);
    expect(name).toMatch(/^nodesentry-bug-report-node-a-\d{8}T\d{6}Z\.tar\.gz$/);
    const archive = join(folder, 'out', name);
    expect(statSync(archive).mode & 0o777).toBe(0o600);
    const files = unpacked(archive);
    const { contents, missing } = manifestOf(files);
    expect([...files.keys()]).toEqual(['manifest.json', ...contents.map((entry) => entry.name)]);
    for (const { name: member, bytes, from } of contents) {
      expect(Buffer.byteLength(files.get(member) ?? '', 'latin1'), member).toBe(bytes);
      expect(stdout).toMatch(new RegExp(`^${member.replaceAll('.', '\\.')} +${bytes} `, 'm'));
      expect(from, member).not.toBe('');
    }
    for (const { name: member, why } of missing) {
      expect(stdout).toMatch(new RegExp(`^${member.replaceAll('.', '\\.')} +missing `, 'm'));
      expect(why, member).not.toBe('');
    }
    expect(missing.find((entry) => entry.name === 'api/status.json')?.why).toBe(
      `no agent answers at ${join(folder, 'run/http.sock')}`,
    );
    expect(contents.map((entry) => entry.name)).toEqual(
      expect.arrayContaining(['doctor.txt', 'kernel/rules.json', 'kernel/ip-rule-4.txt', 'versions.json']),
    );
    expect(JSON.parse(files.get('versions.json') ?? '')).toMatchObject({ layout: 1, node: process.version });
  });

  test('goes on without the tools of the node, and without a configuration', async () => {
    const tools = join(folder, 'tools');
    mkdirSync(tools);
    symlinkSync(process.execPath, join(tools, 'node'));
    write('config.yaml', 'nonsense: [1');
    const { code } = await bugReport(['-o', 'x.tgz'], { PATH: tools });
    const { contents, missing } = manifestOf(unpacked(join(folder, 'out/x.tgz')));
    expect(code).toBe(0);
    const why = new Map(missing.map((entry) => [entry.name, entry.why]));
    expect(why.get('kernel/bpftool-prog.txt')).toBe('bpftool is not installed');
    expect(why.get('kernel/ip-rule-4.txt')).toBe('ip is not installed');
    expect(why.get('kernel/nft.txt')).toBe('nft is not installed');
    expect(why.get('logs/journal.txt')).toMatch(/^journalctl is not installed; .*kubectl logs/);
    expect(why.get('configuration/config.yaml')).toMatch(/^not YAML/);
    expect(contents.map((entry) => entry.name)).toEqual(
      expect.arrayContaining(['kernel/rules.json', 'kernel/links.json', 'kernel/pins.json']),
    );
  });

  test('leaves an existing file alone, and says at once where none can be written', async () => {
    write('out/there.tgz', 'mine');
    const refused = await bugReport(['--output', 'there.tgz']);
    expect([refused.code, refused.stdout, refused.stderr]).toEqual([
      1,
      '',
      'nodesentry: there.tgz exists: name another file by --output\n',
    ]);
    expect(readFileSync(join(folder, 'out/there.tgz'), 'utf8')).toBe('mine');
    symlinkSync(join(folder, 'elsewhere'), join(folder, 'out/link.tgz'));
    expect((await bugReport(['--output', 'link.tgz'])).code).toBe(1);
    expect(existsSync(join(folder, 'elsewhere'))).toBe(false);
    const nowhere = await bugReport(['--output', 'none/x.tgz']);
    expect([nowhere.code, nowhere.stdout]).toEqual([1, '']);
    expect(nowhere.stderr).toContain('cannot be written to');
  });

  test('writes to stdout what a shell puts into a file, and the list to stderr', async () => {
    const places = ['--config', join(folder, 'config.yaml'), '--run-dir', join(folder, 'run')];
    const words = [CLI, 'bug-report', '--output', '-', ...places, '--bpffs', join(folder, 'bpf')];
    const archive = join(folder, 'x.tgz');
    const shell = ['sh', '-c', 'out=$1; shift; "$@" > "$out"', 'sh', archive, ...words];
    const { code, stdout, stderr } = await tryRun('nsenter', [`--net=${netns.path}`, ...shell]);
    expect([code, stdout]).toEqual([0, '']);
    expect(stderr).toMatch(/^versions\.json +\d+ /m);
    expect([...unpacked(archive).keys()][0]).toBe('manifest.json');
  });
});

test('nothing in the archive holds a secret, wherever it stood', async () => {
  const jwt = `eyJhbGciOiJSUzI1NiJ9.${Buffer.from('{"sub":"node"}').toString('base64url')}.c2lnbmF0dXJl`;
  const secrets = {
    comment: 'Comment-9f2c',
    token: 'Kubeconfig-Token-1d7a',
    keyData: Buffer.from('kubeconfig key data').toString('base64'),
    password: 'Kubeconfig-Pass-77',
    execEnv: 'Exec-Env-5521',
    annotation: 'Annotation-Value-31',
    manifestEnv: 'Manifest-Env-90',
    etcd: 'Etcd-Key-4471',
    cniToken: 'Cni-Token-8812',
    kept: 'Kept-Annotation-12',
    history: 'History-Password-6',
    broken: 'Broken-Json-Token-2',
    environment: 'Environment-Secret-3',
    jwt,
    pem: 'MIIEvQIBADANBgkqhkiG9w0BAQEFAASC',
    url: 'Url-Password-4',
    nested: 'Nested-Env-15',
  };
  configure(`# the token is ${secrets.comment}`);
  const user = {
    token: secrets.token,
    'client-key-data': secrets.keyData,
    password: secrets.password,
    exec: { command: 'aws', env: [{ name: 'AWS', value: secrets.execEnv }] },
  };
  write('kubeconfig', stringify({ users: [{ name: 'node', user }], clusters: [] }));
  const env = [{ name: 'DATABASE', value: secrets.manifestEnv }];
  const annotations = {
    'example.com/note': secrets.annotation,
    'kubectl.kubernetes.io/last-applied-configuration': JSON.stringify({ spec: { env } }),
    'nodesentry.io/intercept': 'enabled',
  };
  const labels = { app: 'web', leak: secrets.token, session: secrets.jwt };
  const pod = { namespace: 'default', name: 'web-0', uid: 'u', labels, annotations, ips: [], env };
  write('pods.yaml', stringify({ pods: [pod] }));
  const calico = { type: 'calico', etcd_key: secrets.etcd, policy: { k8s_auth_token: secrets.cniToken } };
  const conflist = JSON.stringify({
    plugins: [
      { ...calico, etcd_ca_cert_file: '/etc/ca.pem', etcd_endpoints: `https://u:${secrets.url}@etcd` },
    ],
  });
  write('net.d/10-calico.conflist', conflist);
  write('net.d/calico-kubeconfig', `token: ${secrets.cniToken}\n`);
  write(`cni-state/original-${'0'.repeat(64)}`, conflist);
  write('run/kubernetes.json', JSON.stringify({ pods: [{ annotations: { x: secrets.kept }, labels }] }));
  const nested = JSON.stringify({ env: [{ name: 'X', value: secrets.nested }] });
  write('run/cni/a.json', JSON.stringify({ podAnnotations: { x: secrets.kept }, text: nested }));
  write(
    'run/addresses.ndjson',
    `{"password":"${secrets.history}","ip":"10.0.0.1"}\n{"token":"${secrets.broken}`,
  );
  write('run/broken.json', `{"token":"${secrets.broken}"`);
  const key = `-----BEGIN PRIVATE KEY-----\n${secrets.pem}\n-----END PRIVATE KEY-----\n`;
  write('run/agent.pid', `1 2\n${key}Authorization: Bearer ${secrets.environment}\n`);

  const { code, stdout, stderr } = await bugReport(['-o', 'x.tgz'], { MY_SECRET: secrets.environment });
  expect([code, stderr]).toEqual([0, '']);
  const files = unpacked(join(folder, 'out/x.tgz'));
  const found = [...files, ['stdout', stdout] as const].flatMap(([name, text]) =>
    Object.entries(secrets).flatMap(([kind, secret]) =>
      text.includes(secret) || text.includes(Buffer.from(secret).toString('base64').slice(0, -4))
        ? [`${kind} in ${name}`]
        : [],
    ),
  );
  expect(found).toEqual([]);

  // What is no secret has stayed.
  expect(files.get('configuration/pods.yaml')).toContain('nodesentry.io/intercept: enabled');
  expect(files.get('configuration/pods.yaml')).toContain('example.com/note: (removed)');
  expect(files.get('configuration/pods.yaml')).toContain('name: DATABASE');
  expect(files.get('configuration/config.yaml')).toContain('kubeconfig: kubeconfig');
  expect(files.get('cni/files/10-calico.conflist')).toContain('"etcd_ca_cert_file": "/etc/ca.pem"');
  expect(files.get('state/run/files/addresses.ndjson')).toContain('"ip":"10.0.0.1"');
  expect([...files.keys()]).toContain(`state/cni/files/original-${'0'.repeat(64)}`);
  expect([...files.keys()]).not.toContain('cni/files/calico-kubeconfig');
  expect(manifestOf(files).missing.map(({ name }) => name)).toContain('state/run/files/broken.json');
});

describe('secrets in a log', () => {
  const secrets = new Secrets([{ users: [{ token: 'known-anywhere' }] }]);

  test.each([
    [
      '12:00 node nodesentry[1]: {"msg":"x","token":"hush-hush"}',
      '12:00 node nodesentry[1]: {"msg":"x","token":"(removed)"}',
    ],
    ['read known-anywhere', 'read (removed)'],
    ['got "token": "hush hush", then', 'got "token": (removed), then'],
    ['run --password hush-hush now', 'run --password (removed) now'],
    ['authorization: Basic aHVzaDpodXNo', 'authorization: Basic (removed)'],
    ['GET https://me:hush@host/x', 'GET https://(removed)@host/x'],
    ['sources synced: kubernetes, cri', 'sources synced: kubernetes, cri'],
    [
      'pod default/token-service: rule 90: INTERCEPTED',
      'pod default/token-service: (removed) 90: INTERCEPTED',
    ],
  ])('%s', (line, expected) => {
    expect(redact(line, 'text', secrets)).toBe(expected);
  });
});

describe('limits', () => {
  const secrets = new Secrets([]);
  const limits = { partMs: 200, partBytes: 100, totalBytes: 150 };
  const part = (name: string, take: Part['take']): Part => ({ name, from: 'here', format: 'text', take });

  test('a part is cut, one that does not come is given up, and a full report names what it has no room for', async () => {
    const { members, missing } = await collect(
      [
        part('late', () => new Promise(() => undefined)),
        part('long', () => ({ text: 'x'.repeat(300), note: '' })),
        part('rest', () => ({ text: 'y'.repeat(90), note: 'odd' })),
        part('none', () => ({ text: 'z', note: '' })),
      ],
      secrets,
      () => undefined,
      limits,
    );
    expect(members.map(({ name, bytes, note }) => [name, bytes.length, note])).toEqual([
      ['long', 100, 'cut: the first 100 of 300 bytes'],
      ['rest', 50, 'odd; cut: the first 50 of 90 bytes'],
    ]);
    expect(missing.map(({ name, why }) => [name, why])).toEqual([
      ['late', 'not there after 0.2 s'],
      ['none', 'the report is full (150 bytes)'],
    ]);
  });

  test('of a long output whole lines are kept, the first or the last', async () => {
    const args = ['100000', '199999'];
    const first = await runCommand('seq', args, { maxBytes: 20 });
    expect(first).toEqual({ text: '100000\n100001\n', note: 'cut: the first 14 of 700000 bytes' });
    const last = await runCommand('seq', args, { maxBytes: 20, keep: 'end' });
    expect(last).toEqual({ text: '199998\n199999\n', note: 'cut: the last 14 of 700000 bytes' });
  });

  test('a command that does not end is ended, whatever it has started, and what it said is kept', async () => {
    const before = performance.now();
    const taken = await runCommand('sh', ['-c', 'echo said; sleep 5 & sleep 5'], { timeoutMs: 300 });
    expect(taken).toEqual({ text: 'said\n', note: 'ended after 0.3 s' });
    expect(performance.now() - before).toBeLessThan(3_000);
  });

  test('a command that fails tells its status, and is missing where it has printed nothing', async () => {
    const told = await runCommand('sh', ['-c', 'echo half; echo why >&2; exit 3']);
    expect(told).toEqual({ text: 'half\n', note: 'exit status 3: why' });
    await expect(runCommand('sh', ['-c', 'echo why >&2; exit 3'])).rejects.toThrow('exit status 3: why');
    await expect(runCommand('no-such-command', [])).rejects.toThrow('no-such-command is not installed');
  });
});
