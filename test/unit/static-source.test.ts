import { mkdtempSync, readdirSync, readFileSync, renameSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterEach, beforeEach, describe, expect, it, vi } from 'vitest';
import type { PodUid } from '../../src/pods/pod.js';
import { PodStore } from '../../src/pods/pod-store.js';
import { StaticSource } from '../../src/pods/sources/static.js';
import { parseStaticPods, StaticPodsError } from '../../src/pods/sources/static-file.js';

const uid = (text: string) => text as PodUid;

const onePod = (name: string, ip = '10.66.0.3') =>
  `pods:\n  - {namespace: default, name: ${name}, uid: ${name}, ips: [${ip}]}\n`;

function mistakes(text: string): string[] {
  try {
    parseStaticPods(text, 'pods.yaml');
  } catch (error) {
    expect(error).toBeInstanceOf(StaticPodsError);
    return (error as StaticPodsError).message.split('\n');
  }
  return [];
}

describe('a static file', () => {
  it('as the contract shows it is read in full', () => {
    const text = `pods:
  - {namespace: default, name: web-0, uid: 6f0c-1, serviceAccount: web, runtime: runsc, labels: {app: web},
     ips: [10.66.0.3, "FD00:66::3"], interface: veth689798b0}
  - {namespace: default, name: web-1, uid: 6f0c-2, ips: [10.66.0.4], netns: /run/netns/web-0,
     annotations: {a: b}, sandboxId: s1, runtimeHandler: gvisor}
  - {namespace: default, name: proxy, uid: 6f0c-3, hostNetwork: true}
`;
    const rest = {
      annotations: {},
      runtimeHandler: '',
      sandboxId: '',
      hostNetwork: false,
      sources: ['static'],
    };
    const plain = {
      ...rest,
      namespace: 'default',
      serviceAccount: 'default',
      runtime: 'unknown',
      labels: {},
    };
    expect(parseStaticPods(text, 'pods.yaml')).toEqual([
      {
        ...rest,
        namespace: 'default',
        name: 'web-0',
        uid: '6f0c-1',
        serviceAccount: 'web',
        runtime: 'runsc',
        labels: { app: 'web' },
        ips: ['10.66.0.3', 'fd00:66::3'],
        interface: 'veth689798b0',
      },
      {
        ...plain,
        name: 'web-1',
        uid: '6f0c-2',
        ips: ['10.66.0.4'],
        netns: '/run/netns/web-0',
        annotations: { a: 'b' },
        sandboxId: 's1',
        runtimeHandler: 'gvisor',
      },
      { ...plain, name: 'proxy', uid: '6f0c-3', ips: [], hostNetwork: true },
    ]);
  });

  it('may hold no pods', () => {
    expect(parseStaticPods('pods: []', 'pods.yaml')).toEqual([]);
  });

  it.each([
    ['uid: a, ips: [x]', 'pods.yaml:2: pods[0].ips[0]: expected an IP address, got "x"'],
    [
      'uid: a, ips: [10.0.0.1, 10.0.0.1/24]',
      'pods.yaml:2: pods[0].ips[1]: expected an IP address, got "10.0.0.1/24"',
    ],
    ['uid: a, ips: ["fd00::1", "fd00:0::1"]', 'pods.yaml:2: pods[0].ips[1]: fd00::1 stands here twice'],
    ['uid: a', 'pods.yaml:2: pods[0].ips: expected at least one IP address (or hostNetwork: true)'],
    ['uid: a, ips: []', 'pods.yaml:2: pods[0].ips: expected at least one IP address (or hostNetwork: true)'],
    [
      'uid: 5, ips: [10.0.0.1]',
      'pods.yaml:2: pods[0].uid: expected a pod UID of 1 to 63 ASCII characters without space or slash, got 5',
    ],
    [
      'ips: [10.0.0.1]',
      'pods.yaml:2: pods[0].uid: expected a pod UID of 1 to 63 ASCII characters without space or slash, got nothing',
    ],
    [
      'uid: a, ips: [10.0.0.1], runtime: kata',
      'pods.yaml:2: pods[0].runtime: expected one of runc, runsc, rund, unknown, got "kata"',
    ],
    [
      'uid: a, ips: [10.0.0.1], labels: {a.b/v: 1}',
      'pods.yaml:2: pods[0].labels["a.b/v"]: expected a text (put it in quotes), got 1',
    ],
    [
      'uid: a, ips: [10.0.0.1], interface: v, netns: /n',
      'pods.yaml:2: pods[0].netns: interface and netns exclude each other',
    ],
    [
      'uid: a, ips: [10.0.0.1], netns: web',
      'pods.yaml:2: pods[0].netns: expected the absolute path of a network namespace, got "web"',
    ],
    ['uid: a, ips: [10.0.0.1], ip: 10.0.0.2', 'pods.yaml:2: pods[0].ip: unknown key'],
  ])('with {%s} is refused', (fields, expected) => {
    expect(mistakes(`pods:\n  - {namespace: default, name: a, ${fields}}\n`)).toEqual([expected]);
  });

  it('with one UID twice is refused where it stands for the second time', () => {
    expect(mistakes(`${onePod('a')}${onePod('a').split('\n')[1]}\n`)).toEqual([
      'pods.yaml:3: pods[1].uid: a is the UID of pods[0] too',
    ]);
  });

  it('that is empty is refused, and does not mean no pods', () => {
    expect(mistakes('')).toEqual([
      expect.stringContaining('expected a mapping with the key pods, got nothing'),
    ]);
    expect(mistakes('pods:\n')).toEqual(['pods.yaml:1: pods: expected a list of pods, got nothing']);
  });
});

describe('StaticSource', () => {
  let folder: string;
  let file: string;
  let store: PodStore;
  let abort: AbortController;
  const log = { info: vi.fn(), warn: vi.fn(), error: vi.fn() };

  beforeEach(() => {
    folder = mkdtempSync(join(tmpdir(), 'nodesentry-static-'));
    file = join(folder, 'pods.yaml');
    store = new PodStore();
    abort = new AbortController();
    vi.clearAllMocks();
  });
  afterEach(() => {
    abort.abort();
    rmSync(folder, { recursive: true, force: true });
  });

  /** `pollMs` far away: only the watch can tell. */
  async function start(pollMs = 3_600_000): Promise<StaticSource> {
    const source = new StaticSource({ file, store, log, pollMs });
    await source.start(abort.signal);
    return source;
  }

  it('has the pods in the store when it has started', async () => {
    writeFileSync(file, onePod('a'));
    const source = await start();
    expect(store.get(uid('a'))?.ips).toEqual(['10.66.0.3']);
    expect([...store.syncedSources()]).toEqual(['static']);
    expect(source.lastError).toBeUndefined();
  });

  it('refuses to start on a bad file, or on none', async () => {
    await expect(start()).rejects.toThrow(
      `${file}: the pods cannot be read: ENOENT: no such file or directory, open '${file}'`,
    );
    writeFileSync(file, onePod('a', 'x'));
    await expect(start()).rejects.toThrow(`${file}:2: pods[0].ips[0]: expected an IP address, got "x"`);
    expect([...store.syncedSources()]).toEqual([]);
  });

  it('follows an edit in place', async () => {
    writeFileSync(file, onePod('a'));
    await start();
    writeFileSync(file, onePod('a', '10.66.0.9'));
    await vi.waitFor(() => expect(store.get(uid('a'))?.ips).toEqual(['10.66.0.9']), { timeout: 5000 });
  });

  it('follows atomic renames, one after the other', async () => {
    writeFileSync(file, onePod('a'));
    await start();
    for (const name of ['b', 'c']) {
      writeFileSync(`${file}.new`, onePod(name));
      renameSync(`${file}.new`, file);
      await vi.waitFor(() => expect(store.list().map((pod) => pod.name)).toEqual([name]), { timeout: 5000 });
    }
  });

  it('follows by looking alone where watching tells nothing', async () => {
    // The watch stays on the folder that was; the path leads to another one.
    writeFileSync(file, onePod('a'));
    await start(20);
    renameSync(folder, `${folder}.old`);
    try {
      const other = mkdtempSync(join(tmpdir(), 'nodesentry-static-'));
      writeFileSync(join(other, 'pods.yaml'), onePod('b'));
      renameSync(other, folder);
      await vi.waitFor(() => expect(store.list().map((pod) => pod.name)).toEqual(['b']), { timeout: 5000 });
    } finally {
      rmSync(`${folder}.old`, { recursive: true, force: true });
    }
  });

  it('refuses a bad edit whole, says so once, and takes the next good one', async () => {
    writeFileSync(file, onePod('a'));
    const source = await start(20);
    writeFileSync(file, `${onePod('a')}  - {namespace: default, name: b, uid: b, ips: [x]}\n`);
    const expected = `${file}:3: pods[1].ips[0]: expected an IP address, got "x"`;
    await vi.waitFor(() => expect(source.lastError).toBe(expected), { timeout: 5000 });
    expect(store.list().map((pod) => pod.name)).toEqual(['a']);
    expect(store.revision).toBe(1);
    expect(log.error.mock.calls).toEqual([
      [expect.objectContaining({ err: expect.objectContaining({ message: expected }) }), expect.any(String)],
    ]);
    writeFileSync(file, onePod('b'));
    await vi.waitFor(() => expect(store.list().map((pod) => pod.name)).toEqual(['b']), { timeout: 5000 });
    expect(source.lastError).toBeUndefined();
    expect(log.error).toHaveBeenCalledTimes(1);
  });

  it('keeps the last good state when the file is removed, and follows when it is back', async () => {
    writeFileSync(file, onePod('a'));
    const source = await start();
    rmSync(file);
    await vi.waitFor(() => expect(source.lastError).toContain('ENOENT'), { timeout: 5000 });
    expect(store.list().map((pod) => pod.name)).toEqual(['a']);
    writeFileSync(file, onePod('b'));
    await vi.waitFor(() => expect(store.list().map((pod) => pod.name)).toEqual(['b']), { timeout: 5000 });
    expect(source.lastError).toBeUndefined();
  });

  it('lets go of the file when it is aborted', async () => {
    const before = inotifyWatches();
    writeFileSync(file, onePod('a'));
    await start(5);
    expect(inotifyWatches()).toBe(before + 1);
    abort.abort();
    expect(inotifyWatches()).toBe(before);

    // Another one, still following, shows that the edit was there to be seen.
    const other = { abort: new AbortController(), store: new PodStore() };
    try {
      await new StaticSource({ file, store: other.store, log, pollMs: 20 }).start(other.abort.signal);
      writeFileSync(file, onePod('b'));
      await vi.waitFor(() => expect(other.store.get(uid('b'))).toBeDefined(), { timeout: 5000 });
      expect(store.list().map((pod) => pod.name)).toEqual(['a']);
    } finally {
      other.abort.abort();
    }
  });
});

function inotifyWatches(): number {
  return readdirSync('/proc/self/fdinfo')
    .map((fd) => {
      try {
        return readFileSync(`/proc/self/fdinfo/${fd}`, 'utf8').match(/^inotify /gm)?.length ?? 0;
      } catch {
        return 0; // the descriptor of this very listing
      }
    })
    .reduce((sum, count) => sum + count, 0);
}
