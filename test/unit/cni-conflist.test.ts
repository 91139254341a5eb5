import { execFile } from 'node:child_process';
import {
  chmodSync,
  chownSync,
  existsSync,
  lstatSync,
  mkdirSync,
  readdirSync,
  readFileSync,
  rmSync,
  statSync,
  symlinkSync,
  writeFileSync,
} from 'node:fs';
import { join } from 'node:path';
import { Worker } from 'node:worker_threads';
import { afterEach, beforeEach, describe, expect, test } from 'vitest';
import { candidates } from '../../src/cni/conf-dir.js';
import { pluginEntry, withoutPlugin, withPlugin } from '../../src/cni/conflist.js';
import { CniError } from '../../src/cni/errors.js';
import { install } from '../../src/cni/install.js';
import { uninstall } from '../../src/cni/uninstall.js';
import { CALICO, CniNode, PLAIN } from './cni-node.js';
import { PLUGIN } from './cni-plugin-lab.js';

let node: CniNode;
/** Our entry, as it stands in that node's chain. */
let entry: string;

beforeEach(() => {
  node = new CniNode();
  entry = JSON.stringify(pluginEntry(node.options));
});

afterEach(() => node.close());

const CONFLIST = '10-calico.conflist';

function refusal(act: () => unknown): { code: string; message: string } {
  try {
    act();
  } catch (error) {
    expect(error).toBeInstanceOf(CniError);
    return error as CniError;
  }
  throw new Error('nothing was refused');
}

describe('the text of a conflist', () => {
  const edit = (text: string) => withPlugin(Buffer.from(text), node.options, 'f').toString();

  test('gets one element more and is otherwise the same, character for character', () => {
    const edited = edit(CALICO);
    expect(edited.replace(`,\n    ${entry}`, '')).toBe(CALICO);
    expect(edited).toContain(`}\n    },\n    {\n      "type": "portmap"`.slice(6));
    expect(JSON.parse(edited).plugins.at(-1)).toEqual(JSON.parse(entry));
    expect(withoutPlugin(Buffer.from(edited), 'f').toString()).toBe(CALICO);
  });

  test.each([
    ['on one line', '{"cniVersion":"1.1.0","name":"a","plugins":[{"type":"x"}]}'],
    [
      'with Windows line ends',
      '{"cniVersion":"1.1.0",\r\n"name":"a","plugins":[\r\n\t{"type":"x"}\r\n]\r\n}\r\n',
    ],
    [
      'with plugins twice',
      '{"cniVersion":"1.1.0","name":"a","plugins":[{"type":"no"}],"plugins":[{"type":"x"}]}',
    ],
    [
      'with plugins as a value and in a string',
      '{"cniVersion":"1.1.0","name":"plugins","a":"\\"plugins\\":[","plugins":[{"type":"x","plugins":[]}]}',
    ],
    ['with an escaped key', '{"cniVersion":"1.1.0","name":"a","pl\\u0075gins":[{"type":"x"}]}'],
    ['with several versions', '{"cniVersions":["0.3.0","1.0.0"],"name":"a","plugins":[{"type":"x"}]}'],
    ['of 0.3.1, as Calico and flannel ship', '{"name":"a","cniVersion":"0.3.1","plugins":[{"type":"x"}]}'],
  ])('%s', (_, text) => {
    const edited = edit(text);
    const { plugins } = JSON.parse(edited) as { plugins: { type: string }[] };
    expect(plugins.map(({ type }) => type)).toEqual(['x', 'nodesentry-cni']);
    expect(withoutPlugin(Buffer.from(edited), 'f').toString()).toBe(text);
  });

  test('keeps bytes that are no UTF-8, as runtimes do', () => {
    const bytes = Buffer.from('{"cniVersion":"1.1.0","name":"a\xff","plugins":[{"type":"x"}]}', 'latin1');
    const edited = withPlugin(bytes, node.options, 'f');
    expect(edited.includes(Buffer.from('"a\xff"', 'latin1'))).toBe(true);
    expect(withoutPlugin(edited, 'f')).toEqual(bytes);
  });

  test('with our entry is left alone, wherever behind the first it stands', () => {
    for (const plugins of [`{"type":"x"},${entry}`, `{"type":"x"},${entry},{"type":"istio-cni"}`]) {
      const bytes = Buffer.from(`{"cniVersion":"1.1.0","name":"a","plugins":[${plugins}]}`);
      expect(withPlugin(bytes, node.options, 'f')).toBe(bytes);
    }
  });

  test('with our entry of other options, first, or twice, gets it right', () => {
    const old = entry.replace('closed', 'open');
    for (const [given, expected] of [
      [`{"type":"x"},${old},{"type":"y"}`, `{"type":"x"},${entry},{"type":"y"}`],
      [`${entry}, {"type":"x"}`, `{"type":"x"},${entry}`],
      [`${old},${entry},{"type":"x"},${entry}`, `{"type":"x"},${entry}`],
    ]) {
      const text = (plugins = '') => `{"cniVersion":"1.1.0","name":"a","plugins":[${plugins}]}`;
      expect(edit(text(given))).toBe(text(expected));
    }
  });

  test('with a socket of any name', () => {
    const odd = { ...node.options, socket: '/run/ä "b"/cni.sock' };
    const edited = withPlugin(Buffer.from(CALICO), odd, 'f').toString();
    expect(JSON.parse(edited).plugins.at(-1)).toMatchObject({ socket: odd.socket });
  });
});

describe('which configuration', () => {
  test('is the first by name of those that a runtime reads', () => {
    for (const name of [
      '20-b.json',
      '10-a.conf',
      '05-x.conflist.bak',
      'Z.conflist',
      '.hidden',
      '00-readme.md',
    ]) {
      node.write(name, '{}');
    }
    mkdirSync(node.path('01-folder.conflist'));
    expect(candidates(node.confDir).map(({ path }) => path)).toEqual(
      ['10-a.conf', '20-b.json', 'Z.conflist'].map((name) => node.path(name)),
    );
    expect(candidates(join(node.root, 'not-there'))).toEqual([]);
  });

  test('is made from a plain .conf, so that it comes first, and goes again', () => {
    node.write('10-lonely.conf', PLAIN);
    node.write('20-other.conflist', CALICO);
    const file = node.path('10-lonely-nodesentry.conflist');
    expect(install(node.options)).toMatchObject({
      file,
      change: 'derived',
      source: node.path('10-lonely.conf'),
    });
    expect(candidates(node.confDir)[0]?.path).toBe(file);
    expect(JSON.parse(readFileSync(file, 'utf8'))).toEqual({
      cniVersion: '0.4.0',
      name: 'lonely',
      plugins: [JSON.parse(PLAIN), JSON.parse(entry)],
    });
    expect(readFileSync(file, 'utf8')).toContain('"n": 1.0');
    expect(install(node.options)).toMatchObject({ file, change: 'unchanged' });
    expect(uninstall(node.options).files).toEqual([{ path: file, change: 'removed' }]);
    expect(node.names()).toEqual(['10-lonely.conf', '20-other.conflist']);
    expect([node.read('10-lonely.conf'), node.read('20-other.conflist')]).toEqual([PLAIN, CALICO]);
  });

  test('follows the plain .conf that it was made from, and goes with it', () => {
    node.write('10-lonely.conf', PLAIN);
    install(node.options);
    node.write('10-lonely.conf', PLAIN.replace('1.0}', '2.0}'));
    expect(install(node.options)).toMatchObject({ change: 'derived' });
    expect(node.read('10-lonely-nodesentry.conflist')).toContain('"n": 2.0');
    rmSync(node.path('10-lonely.conf'));
    expect(refusal(() => install(node.options)).code).toBe('NO_CONFIGURATION');
    expect(node.names()).toEqual([]);
  });

  test('is the file behind a symbolic link, which stays one', () => {
    const real = join(node.root, 'real.conflist');
    writeFileSync(real, CALICO);
    symlinkSync(real, node.path(CONFLIST));
    expect(install(node.options)).toMatchObject({ file: real, change: 'added' });
    expect(node.chain(CONFLIST)).toEqual(['calico', 'portmap', 'nodesentry-cni']);
    uninstall(node.options);
    expect([lstatSync(node.path(CONFLIST)).isSymbolicLink(), readFileSync(real, 'utf8')]).toEqual([
      true,
      CALICO,
    ]);
  });
});

describe('install', () => {
  test('copies the plugin, edits the conflist, keeps its mode and owner; twice changes nothing', () => {
    node.write(CONFLIST, CALICO);
    chmodSync(node.path(CONFLIST), 0o640);
    chownSync(node.path(CONFLIST), 7, 8);
    expect(install(node.options)).toEqual({
      file: node.path(CONFLIST),
      change: 'added',
      binary: { path: join(node.binDir, 'nodesentry-cni'), change: 'copied' },
      released: [],
    });
    const { mode, uid, gid, ino, mtimeMs } = statSync(node.path(CONFLIST));
    expect([mode & 0o777, uid, gid]).toEqual([0o640, 7, 8]);
    expect(statSync(join(node.binDir, 'nodesentry-cni')).mode & 0o7777).toBe(0o755);
    expect(readFileSync(join(node.binDir, 'nodesentry-cni')).equals(readFileSync(PLUGIN))).toBe(true);
    expect(install(node.options)).toMatchObject({ change: 'unchanged', binary: { change: 'unchanged' } });
    expect(statSync(node.path(CONFLIST))).toMatchObject({ ino, mtimeMs });
    expect(node.names()).toEqual([CONFLIST]);
  });

  test('with other options changes the entry, and the original is still the first one', () => {
    node.write(CONFLIST, CALICO);
    install(node.options);
    expect(install({ ...node.options, failure: 'open' })).toMatchObject({ change: 'added' });
    expect(node.read(CONFLIST)).toContain('"failure":"open"');
    expect(uninstall(node.options).files).toMatchObject([{ change: 'restored' }]);
    expect(node.read(CONFLIST)).toBe(CALICO);
  });

  test('when another file has become first moves there, and restores the one before', () => {
    node.write(CONFLIST, CALICO);
    install(node.options);
    node.write('05-cilium.conflist', CALICO);
    expect(install(node.options)).toMatchObject({
      file: node.path('05-cilium.conflist'),
      released: [{ path: node.path(CONFLIST), change: 'restored' }],
    });
    expect(node.read(CONFLIST)).toBe(CALICO);
    expect(node.chain('05-cilium.conflist')).toContain('nodesentry-cni');
    uninstall(node.options);
    expect(node.read('05-cilium.conflist')).toBe(CALICO);
  });

  test.each([
    ['empty', '', /: the file is empty$/],
    ['text', 'plugins: []', /: not JSON: /],
    ['half a file', CALICO.slice(0, 200), /: not JSON: /],
    ['with a byte order mark', `\ufeff${CALICO}`, /: not JSON: /],
    ['a list', '[]', /: not a JSON object$/],
    ['without a name', '{"cniVersion":"1.0.0","plugins":[{"type":"x"}]}', /: name: missing/],
    ['without plugins', '{"cniVersion":"1.0.0","name":"a"}', /: plugins: missing$/],
    [
      'with plugins that are no list',
      '{"cniVersion":"1.0.0","name":"a","plugins":{}}',
      /: plugins: expected a list$/,
    ],
    ['with no plugin', '{"cniVersion":"1.0.0","name":"a","plugins":[]}', /: plugins: is empty/],
    [
      'with our plugin alone',
      '{"cniVersion":"1.0.0","name":"a","plugins":[{"type":"nodesentry-cni"}]}',
      /: plugins: has no plugin but/,
    ],
    [
      'with a plugin of no type',
      '{"cniVersion":"1.0.0","name":"a","plugins":[{"type":"x"},{}]}',
      /: plugins\[1\].type: /,
    ],
    [
      'of an old version',
      '{"cniVersion":"0.3.0","name":"a","plugins":[{"type":"x"}]}',
      /: cniVersion: "0.3.0", but .* speaks 0.3.1, 0.4.0, 1.0.0, 1.1.0/,
    ],
    ['of no version', '{"name":"a","plugins":[{"type":"x"}]}', /: cniVersion: missing, but/],
  ])('of a conflist %s is one clear error, and nothing is changed', (_, text, message) => {
    node.write(CONFLIST, text);
    const { code, message: told } = refusal(() => install(node.options));
    expect(code).toBe('INVALID_CONFIGURATION');
    expect(told).toMatch(message);
    expect(told.startsWith(`${node.path(CONFLIST)}: `)).toBe(true);
    expect([node.read(CONFLIST), readdirSync(node.root)]).toEqual([text, ['net.d']]);
  });

  test.each([
    ['a list', '10-a.conf', CALICO, /: plugins: a list of plugins belongs into a file named \*\.conflist$/],
    ['no type', '10-a.json', '{"cniVersion":"1.0.0","name":"a"}', /: type: missing/],
    ['no name', '10-a.conf', '{"cniVersion":"1.0.0","type":"x"}', /: name: missing/],
  ])('of a plain configuration with %s likewise', (_, name, text, message) => {
    node.write(name, text);
    expect(refusal(() => install(node.options)).message).toMatch(message);
    expect([node.names(), readdirSync(node.root)]).toEqual([[name], ['net.d']]);
  });

  test('without any configuration, or the plugin, says so and changes nothing', () => {
    expect(refusal(() => install(node.options))).toMatchObject({ code: 'NO_CONFIGURATION' });
    node.write(CONFLIST, CALICO);
    const { message } = refusal(() => install({ ...node.options, plugin: '/not/built' }));
    expect(message).toBe('/not/built: the CNI plugin is not built: run "make build"');
    expect([node.read(CONFLIST), readdirSync(node.root)]).toEqual([CALICO, ['net.d']]);
  });

  test('replaces a plugin that is running, and the running one goes on', async () => {
    node.write(CONFLIST, CALICO);
    install(node.options);
    const binary = join(node.binDir, 'nodesentry-cni');
    const env = { CNI_COMMAND: 'VERSION' };
    const child = execFile(binary, [], { env });
    const output = new Promise<string>((resolve) => child.stdout?.once('data', resolve));
    const newer = join(node.root, 'newer');
    writeFileSync(newer, '#!/bin/sh\n');
    expect(install({ ...node.options, plugin: newer })).toMatchObject({ binary: { change: 'copied' } });
    child.stdin?.end('{"cniVersion":"1.0.0"}');
    expect(await output).toContain('"supportedVersions"');
    expect(readFileSync(binary, 'utf8')).toBe('#!/bin/sh\n');
  });
});

describe('uninstall', () => {
  test('leaves the node byte for byte as it was', () => {
    node.write(CONFLIST, CALICO);
    install(node.options);
    expect(uninstall(node.options)).toEqual({
      files: [{ path: node.path(CONFLIST), change: 'restored' }],
      binary: { path: join(node.binDir, 'nodesentry-cni'), change: 'removed' },
    });
    expect(node.read(CONFLIST)).toBe(CALICO);
    expect([readdirSync(node.binDir), readdirSync(node.stateDir)]).toEqual([[], []]);
  });

  test('of a file that was rewritten takes out our entry and no more, or leaves it', () => {
    for (const [rewritten, expected, change] of [
      [CALICO.replace('"calico"', '"cilium"'), undefined, 'left'],
      ['not JSON', undefined, 'left'],
      [
        `{"cniVersion":"1.0.0","name":"new","plugins":[{"type":"x"},${entry},{"type":"z"}]}`,
        '{"cniVersion":"1.0.0","name":"new","plugins":[{"type":"x"},{"type":"z"}]}',
        'entry-removed',
      ],
    ] as const) {
      node.write(CONFLIST, CALICO);
      install(node.options);
      node.write(CONFLIST, rewritten);
      expect(uninstall(node.options).files).toMatchObject([{ change }]);
      expect(node.read(CONFLIST)).toBe(expected ?? rewritten);
    }
  });

  test('of a file that is gone, or of nothing, succeeds', () => {
    expect(uninstall(node.options)).toMatchObject({ files: [], binary: { change: 'gone' } });
    node.write(CONFLIST, CALICO);
    install(node.options);
    rmSync(node.path(CONFLIST));
    expect(uninstall(node.options)).toMatchObject({
      files: [{ change: 'gone' }],
      binary: { change: 'removed' },
    });
    expect(uninstall(node.options)).toMatchObject({ files: [], binary: { change: 'gone' } });
  });

  test('leaves a binary that is not ours', () => {
    node.write(CONFLIST, CALICO);
    install(node.options);
    writeFileSync(join(node.binDir, 'nodesentry-cni'), 'theirs');
    expect(uninstall(node.options)).toMatchObject({ binary: { change: 'kept' } });
    expect(readFileSync(join(node.binDir, 'nodesentry-cni'), 'utf8')).toBe('theirs');
  });

  test('with the state lost still takes entry and binary away', () => {
    node.write(CONFLIST, CALICO);
    install(node.options);
    rmSync(node.stateDir, { recursive: true });
    expect(uninstall(node.options)).toMatchObject({
      files: [{ change: 'entry-removed' }],
      binary: { change: 'removed' },
    });
    expect(node.read(CONFLIST)).toBe(CALICO);
  });

  test('with the kept original damaged does not write it back', () => {
    node.write(CONFLIST, CALICO);
    install(node.options);
    for (const name of readdirSync(node.stateDir).filter((file) => file.startsWith('original-'))) {
      writeFileSync(join(node.stateDir, name), 'damaged');
    }
    expect(uninstall(node.options).files).toMatchObject([{ change: 'entry-removed' }]);
    expect(node.read(CONFLIST)).toBe(CALICO);
  });

  test('with a state that it does not understand changes nothing and names the file', () => {
    node.write(CONFLIST, CALICO);
    install(node.options);
    const edited = node.read(CONFLIST);
    writeFileSync(join(node.stateDir, 'state.json'), '{"version":2}');
    for (const act of [uninstall, install]) {
      const { code, message } = refusal(() => act(node.options));
      expect([code, message.startsWith(`${node.stateDir}/state.json: `)]).toEqual(['STATE_INVALID', true]);
    }
    expect(node.read(CONFLIST)).toBe(edited);
  });

  test('after an installation that was cut off before the edit finds nothing to undo', () => {
    node.write(CONFLIST, CALICO);
    install(node.options);
    node.write(CONFLIST, CALICO); // as if the rename had never come
    expect(uninstall(node.options).files).toMatchObject([{ change: 'left' }]);
    expect(node.read(CONFLIST)).toBe(CALICO);
  });
});

test('nobody ever sees half a file, however often it is edited', async () => {
  node.write(CONFLIST, CALICO);
  const stop = new Int32Array(new SharedArrayBuffer(4));
  const reader = new Worker(
    `const { workerData, parentPort } = require('node:worker_threads');
     const { readFileSync } = require('node:fs');
     const { path, stop, whole } = workerData;
     const seen = {};
     let bad = 0;
     parentPort.postMessage('reading');
     while (Atomics.load(stop, 0) === 0) {
       const text = readFileSync(path, 'utf8');
       if (text === whole) seen.plain = true;
       else if (text.includes('nodesentry-cni') && text.endsWith(']\\n}\\n')) seen.edited = true;
       else bad++;
     }
     parentPort.postMessage({ bad, seen });`,
    { eval: true, workerData: { path: node.path(CONFLIST), stop, whole: CALICO } },
  );
  const next = () => new Promise<unknown>((resolve) => reader.once('message', resolve));
  await next();
  for (let round = 0; round < 100; round++) {
    install(node.options);
    uninstall(node.options);
  }
  Atomics.store(stop, 0, 1);
  expect(await next()).toEqual({ bad: 0, seen: { plain: true, edited: true } });
  await reader.terminate();
  expect([node.names(), existsSync(join(node.binDir, 'nodesentry-cni'))]).toEqual([[CONFLIST], false]);
});
