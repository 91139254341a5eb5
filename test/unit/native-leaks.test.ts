import { readdirSync, rmSync } from 'node:fs';
import { join } from 'node:path';
import { setImmediate as nextTurn } from 'node:timers/promises';
import { setFlagsFromString } from 'node:v8';
import { runInNewContext } from 'node:vm';
import { afterEach, expect, it, vi } from 'vitest';
import { openAnnounceDoor } from '../../src/native/announce-door.js';
import { attachSkLookup, attachTcx, BpfObject, openRingBuffer } from '../../src/native/bpf.js';
import { openLinkEvents } from '../../src/native/link-events.js';
import { sized } from '../lab/size.js';
import { Cleanup, fixture, loadProbe, Netns, temporaryFolder } from './native-lab.js';

const ROUNDS = sized(200, 1_000);
const RSS_GROWTH = 24 << 20;
const cleanup = new Cleanup();

setFlagsFromString('--expose-gc');
const gc = runInNewContext('gc') as () => void;

afterEach(() => cleanup.run());

const descriptors = () => readdirSync('/proc/self/fd').length;
const threads = () => readdirSync('/proc/self/task').length;

/** Opens, loads, attaches and closes everything once; failures half way included. */
function round(netns: Netns, ifindex: number, path: string): void {
  const object = loadProbe();
  const owned = [
    object.map('numbers'),
    object.map('records'),
    object.program('stamp'),
    object.program('choose'),
  ] as const;
  const [, records, stamp, choose] = owned;
  const closing: { close(): void }[] = [...owned, object];
  closing.unshift(netns.run(() => attachTcx(stamp, ifindex, 'ingress')));
  closing.unshift(attachSkLookup(choose, netns.fd));
  closing.unshift(openRingBuffer(records, () => {}));
  closing.unshift(
    netns.run(() =>
      openLinkEvents(
        () => {},
        () => {},
      ),
    ),
  );
  closing.unshift(openAnnounceDoor(path, () => {}));
  rmSync(path);
  const refused = BpfObject.open(fixture('refused'));
  expect(() => refused.load()).toThrow();
  expect(() => openRingBuffer(owned[0], () => {})).toThrow();
  expect(() => netns.run(() => attachTcx(stamp, 999, 'ingress'))).toThrow();
  refused.close();
  for (const handle of closing) {
    handle.close();
  }
}

it(`holds no descriptor, thread or memory after ${ROUNDS} rounds`, { timeout: 240_000 }, async () => {
  const netns = cleanup.owned(new Netns());
  const ifindex = netns.addVeth('pod');
  const path = join(temporaryFolder(cleanup), 'door');
  const settle = async () => {
    await nextTurn();
    gc();
  };
  for (let i = 0; i < 50; i++) {
    round(netns, ifindex, path);
  }
  await settle();
  const before = { descriptors: descriptors(), threads: threads(), rss: process.memoryUsage.rss() };
  for (let i = 0; i < ROUNDS; i++) {
    round(netns, ifindex, path);
    if (i % 50 === 0) {
      await settle();
    }
  }
  await settle();
  await vi.waitFor(() => {
    expect(descriptors()).toBe(before.descriptors);
    expect(threads()).toBe(before.threads);
  });
  expect(process.memoryUsage.rss() - before.rss).toBeLessThan(RSS_GROWTH);
});

it('closes what was dropped without close()', async () => {
  const before = descriptors();
  (() => {
    for (let i = 0; i < 20; i++) {
      const object = loadProbe();
      object.map('numbers');
      object.program('stamp');
      openRingBuffer(object.map('records'), () => {});
    }
  })();
  expect(descriptors()).toBeGreaterThan(before + 20);
  await vi.waitFor(
    async () => {
      gc();
      await nextTurn();
      expect(descriptors()).toBeLessThanOrEqual(before);
    },
    { timeout: 20_000 },
  );
});
