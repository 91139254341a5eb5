import { afterEach, beforeEach, expect, it, vi } from 'vitest';
import { type LinkEvent, type LinkEventOptions, openLinkEvents } from '../../src/native/link-events.js';
import { interfaceIndex } from '../../src/native/namespaces.js';
import { Cleanup, Netns } from './native-lab.js';

const cleanup = new Cleanup();
let netns: Netns;

beforeEach(() => {
  netns = cleanup.owned(new Netns());
});

afterEach(() => cleanup.run());

function watch(options?: LinkEventOptions) {
  const seen: (LinkEvent | 'resync')[] = [];
  const events = cleanup.owned(
    netns.run(() =>
      openLinkEvents(
        (batch) => seen.push(...batch),
        () => seen.push('resync'),
        options,
      ),
    ),
  );
  /** The last that was said of an interface. */
  const last = (name: string) => seen.findLast((event) => event !== 'resync' && event.name === name);
  return { seen, events, last };
}

/** Up and down, `times` each; JavaScript is blocked meanwhile. */
function flap(name: string, times: number, lastCommand?: string): void {
  const commands = Array.from({ length: times }, () => [
    `link set ${name} up`,
    `link set ${name} down`,
  ]).flat();
  netns.ipBatch(lastCommand === undefined ? commands : [...commands, lastCommand]);
}

it('tells links that come, change and go', async () => {
  const { seen, last } = watch();
  const ifindex = netns.addVeth('pod');
  await vi.waitFor(() =>
    expect(last('pod')).toEqual({ kind: 'new', ifindex, name: 'pod', up: false, master: 0 }),
  );
  netns.ip('link set pod up');
  await vi.waitFor(() => expect(last('pod')).toMatchObject({ kind: 'new', up: true }));
  netns.ip('link set pod name renamed');
  await vi.waitFor(() => expect(last('renamed')).toMatchObject({ kind: 'new', ifindex }));
  netns.ip('link del renamed');
  await vi.waitFor(() => expect(last('renamed')).toMatchObject({ kind: 'del', ifindex }));
  expect(seen).not.toContain('resync');
});

it('does not take a port that leaves its bridge for a link that is gone', async () => {
  const ifindex = netns.addVeth('pod');
  netns.ip('link add name bridge type bridge');
  const { seen, last } = watch();
  netns.ip('link set pod master bridge');
  await vi.waitFor(() => expect(last('pod')).toMatchObject({ ifindex, master: ifindex + 1 }));
  netns.ip('link set pod nomaster');
  await vi.waitFor(() => expect(last('pod')).toMatchObject({ ifindex, master: 0 }));
  expect(seen.filter((event) => event !== 'resync' && event.kind === 'del')).toEqual([]);
});

it.each([
  ['its socket overran (ENOBUFS)', { receiveBytes: 1 }],
  ['JavaScript was behind', { queueLimit: 8 }],
])('asks for a resync when %s, and nothing older comes after it', async (_why, options) => {
  netns.addVeth('pod');
  const known = new Set(['pod']);
  let resyncs = 0;
  cleanup.owned(
    netns.run(() =>
      openLinkEvents(
        (events) => {
          for (const { kind, name } of events) {
            known[kind === 'new' ? 'add' : 'delete'](name);
          }
        },
        () => {
          resyncs++;
          known.clear();
          for (const name of ['pod', 'after']) {
            netns.run(() => interfaceIndex(name)) && known.add(name);
          }
        },
        options,
      ),
    ),
  );
  // The link goes while events are being lost: an old event that came late would bring it back for good.
  // Whether a burst overruns the buffer is the scheduler's choice: until one does.
  for (let round = 0; resyncs === 0 && round < 20; round++) {
    if (round > 0) {
      netns.addVeth('pod');
    }
    flap('pod', 1000, 'link del pod');
    await vi.waitFor(() => expect(resyncs).toBeGreaterThan(0), 300).catch(() => undefined);
  }
  expect(resyncs).toBeGreaterThan(0);
  netns.ip('link add name after type bridge');
  await vi.waitFor(() => expect(known).toContain('after'));
  expect(known).not.toContain('pod');
});

it('delivers thousands of events that came while JavaScript was busy', async () => {
  netns.addVeth('pod');
  const { seen, last } = watch();
  flap('pod', 1000);
  netns.ip('link set pod name done');
  await vi.waitFor(() => expect(last('done')).toBeDefined());
  expect(seen.length).toBeGreaterThan(2000);
  expect(seen).not.toContain('resync');
});

it('is silent once closed', async () => {
  const first = watch();
  const second = watch();
  netns.ip('link add name one type bridge');
  first.events.close();
  first.events.close();
  await vi.waitFor(() => expect(second.last('one')).toBeDefined());
  expect(first.seen).toEqual([]);
});
