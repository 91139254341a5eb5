/** What the agent still knows of announced pods after a restart, and what it lets go of. */

import {
  mkdirSync,
  readdirSync,
  readFileSync,
  rmSync,
  symlinkSync,
  utimesSync,
  writeFileSync,
} from 'node:fs';
import { join } from 'node:path';
import { afterEach, beforeEach, describe, expect, test } from 'vitest';
import type { PodUid } from '../../src/pods/pod.js';
import { ADD, attachment, CniFixture, NETNS } from './cni-fixture.js';

let node: CniFixture;

beforeEach(async () => {
  node = new CniFixture();
  await node.start();
});
afterEach(() => node.close());

const web = () => node.store.get('uid-web' as PodUid);
const files = () => readdirSync(node.directory).sort();
const inOrder = (name: string, second: number) =>
  utimesSync(join(node.directory, name), second, 1_700_000_000 + second);
const otherNetns = () => {
  const path = join(node.folder, 'netns');
  writeFileSync(path, '');
  return path;
};

describe('an agent that is started anew', () => {
  test('knows the pods that were announced to the one before, and that it is synced', async () => {
    await node.ask(ADD);
    const before = node.store.list();
    await node.restart();
    expect(node.store.list()).toEqual(before);
    expect([...node.store.syncedSources()]).toEqual(['cni']);
    expect(await node.ask({ ...ADD, command: 'CHECK' })).toMatchObject({ ok: true });
    expect(node.log.warn).not.toHaveBeenCalled();
  });

  test.each([
    ['c1@eth0', ''],
    ['c1@eth0', '{"containerId":"c1",'],
    ['c1@eth0', 'null'],
    ['c1@eth0', JSON.stringify({ containerId: 'c1', ifname: 'eth0', netns: NETNS })],
    ['c1@eth0', JSON.stringify({ ...attachment(), ips: ['10.66.0.300'] })],
    ['c1@eth0', JSON.stringify({ ...attachment(), podUid: 'a/b' })],
    ['c2@eth0', JSON.stringify(attachment())],
    ['c1@eth0.new', JSON.stringify(attachment())],
    ['other', 'not ours'],
  ])('removes a file %s with %j, says so, and keeps the rest', async (name, content) => {
    await node.ask({ ...ADD, containerId: 'good', podUid: 'uid-good' });
    writeFileSync(join(node.directory, name), content);
    await node.restart();
    expect(files()).toEqual(['good@eth0']);
    expect(node.store.list().map(({ uid }) => uid)).toEqual(['uid-good']);
    expect(node.log.warn).toHaveBeenCalledTimes(1);
    expect(node.log.warn.mock.calls[0]?.[0]).toMatchObject({ path: join(node.directory, name) });
  });

  test('removes folders and links that lead nowhere, too', async () => {
    mkdirSync(join(node.directory, 'folder'));
    symlinkSync('/does/not/exist', join(node.directory, 'link'));
    await node.restart();
    expect(files()).toEqual([]);
  });

  test('lets go of what has lost its namespace meanwhile', async () => {
    const netns = otherNetns();
    await node.ask({ ...ADD, netns });
    await node.ask({ ...ADD, containerId: 'c2', podUid: 'uid-two' });
    rmSync(netns);
    await node.restart();
    expect(files()).toEqual(['c1@eth0', 'c2@eth0']);
    node.source.prune();
    expect(node.store.list().map(({ uid }) => uid)).toEqual(['uid-two']);
    expect(files()).toEqual(['c2@eth0']);
  });
});

describe('while it runs', () => {
  test('what has lost its namespace without a DEL is let go of', async () => {
    const netns = otherNetns();
    await node.ask({ ...ADD, netns });
    node.source.prune();
    expect(web()).toBeDefined();
    rmSync(netns);
    node.source.prune();
    node.source.prune();
    expect([web(), files()]).toEqual([undefined, []]);
  });

  test('what has lost its namespace for a moment only is kept', async () => {
    const netns = otherNetns();
    await node.ask({ ...ADD, netns });
    for (let look = 0; look < 2; look++) {
      rmSync(netns);
      node.source.prune();
      writeFileSync(netns, '');
      node.source.prune();
    }
    expect([web(), files()]).toEqual([expect.objectContaining({ netns }), ['c1@eth0']]);
  });

  test('a pod is on disk before anybody is told of it', () => {
    let found: string[] = [];
    node.store.subscribe(() => {
      found = files();
    });
    node.source.add(attachment());
    expect(found).toEqual(['c1@eth0']);
    expect(JSON.parse(readFileSync(join(node.directory, 'c1@eth0'), 'utf8'))).toEqual(attachment());
  });
});

describe('a pod with two sandboxes', () => {
  const first = { containerId: 'z-old' };
  const second = () => ({
    containerId: 'a-new',
    netns: otherNetns(),
    prevResult: { ips: [{ address: '10.66.0.4/24' }] },
  });

  test('is that of the newer one, and stays when the older one is deleted', () => {
    node.source.add(attachment(first));
    node.source.add(attachment(second()));
    expect(web()).toMatchObject({ sandboxId: 'a-new', ips: ['10.66.0.4'] });
    node.source.remove({ containerId: 'z-old', ifname: 'eth0' });
    expect(web()).toMatchObject({ sandboxId: 'a-new', ips: ['10.66.0.4'] });
    node.source.remove({ containerId: 'a-new', ifname: 'eth0' });
    expect(web()).toBeUndefined();
  });

  test('is that of the older one again when the newer one fails', () => {
    node.source.add(attachment(first));
    node.source.add(attachment(second()));
    node.source.remove({ containerId: 'a-new', ifname: 'eth0' });
    expect(web()).toMatchObject({ sandboxId: 'z-old', netns: NETNS, ips: ['10.66.0.3', 'fd00:66::3'] });
  });

  test('is that of the newer one after a restart, whatever their names', async () => {
    node.source.add(attachment(first));
    node.source.add(attachment(second()));
    inOrder('z-old@eth0', 1);
    inOrder('a-new@eth0', 2);
    await node.restart();
    expect(web()?.sandboxId).toBe('a-new');
    inOrder('z-old@eth0', 3);
    await node.restart();
    expect(web()?.sandboxId).toBe('z-old');
  });

  test('has the addresses of all interfaces of one sandbox', () => {
    node.source.add(attachment());
    node.source.add(attachment({ ifname: 'net1', prevResult: { ips: [{ address: '10.77.0.1/24' }] } }));
    expect(web()?.ips).toEqual(['10.66.0.3', 'fd00:66::3', '10.77.0.1']);
    node.source.remove({ containerId: 'c1', ifname: 'net1' });
    expect(web()?.ips).toEqual(['10.66.0.3', 'fd00:66::3']);
  });
});

test('an ADD that is repeated replaces the one before, also under another pod UID', () => {
  node.source.add(attachment());
  node.source.add(attachment({ containerId: 'c2' }));
  node.source.add(attachment({ prevResult: { ips: [{ address: '10.66.0.9/24' }] } }));
  expect(web()?.sandboxId).toBe('c1');
  node.source.remove({ containerId: 'c2', ifname: 'eth0' });
  node.source.add(attachment({ podUid: 'uid-other' }));
  expect(node.store.list().map(({ uid }) => uid)).toEqual(['uid-other']);
});
