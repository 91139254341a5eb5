import { mkdirSync, renameSync, rmSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { afterEach, beforeEach, describe, expect, test } from 'vitest';
import { ConflistKeeper, type ConflistKeeperOptions } from '../../src/cni/keeper.js';
import { uninstall } from '../../src/cni/uninstall.js';
import { waitFor } from '../lab/exec.js';
import { CALICO, CILIUM, CniNode, PLAIN } from './cni-node.js';

const CONFLIST = '10-calico.conflist';
const CHAIN = ['calico', 'portmap', 'nodesentry-cni'];

let node: CniNode;
let stop: AbortController;
let lines: { level: string; message: string }[];

beforeEach(() => {
  node = new CniNode();
  stop = new AbortController();
  lines = [];
});

afterEach(() => {
  stop.abort();
  node.close();
});

function keeper(more: Partial<ConflistKeeperOptions> = {}): ConflistKeeper {
  const at = (level: string) => (_fields: object, message: string) => void lines.push({ level, message });
  const log = { info: at('info'), warn: at('warn'), error: at('error') };
  const kept = new ConflistKeeper({ ...node.options, log, lookMs: 50, ...more });
  kept.start(stop.signal);
  return kept;
}

const chained = (name = CONFLIST): boolean => {
  try {
    return node.chain(name).includes('nodesentry-cni');
  } catch {
    return false;
  }
};

const repaired = (kept: ConflistKeeper, times: number) =>
  waitFor(`${times} repairs`, () => kept.repairs === times && chained());

test('installs at once, and that is no repair', () => {
  node.write(CONFLIST, CALICO);
  const kept = keeper();
  expect([kept.repairs, kept.problem, kept.file]).toEqual([0, undefined, node.path(CONFLIST)]);
  expect(node.chain(CONFLIST)).toEqual(CHAIN);
  expect(lines).toEqual([{ level: 'info', message: 'cni: the plugin was put into the chain' }]);
});

describe('repairs', () => {
  test('a configuration that the primary CNI writes anew, in place or by renaming, and says what was wrong', async () => {
    node.write(CONFLIST, CALICO);
    const kept = keeper();
    node.write(CONFLIST, CALICO);
    await repaired(kept, 1);
    const other = CALICO.replace('1.440e3', '9000');
    writeFileSync(join(node.root, 'new'), other);
    renameSync(join(node.root, 'new'), node.path(CONFLIST));
    await repaired(kept, 2);
    expect(node.read(CONFLIST)).toContain('"mtu": 9000');
    expect(lines.slice(1)).toEqual(
      Array(2).fill({
        level: 'warn',
        message: `cni: ${node.path(CONFLIST)} had lost the plugin, repaired`,
      }),
    );
    uninstall(node.options);
    expect(node.read(CONFLIST)).toBe(other);
  });

  test('by looking alone, where watching tells nothing', async () => {
    const { confDir } = node;
    node.write(CONFLIST, CALICO);
    const kept = keeper();
    rmSync(confDir, { recursive: true }); // the watch of the folder is lost with it
    mkdirSync(confDir);
    node.write(CONFLIST, CALICO);
    await waitFor('the plugin in the new folder', () => chained());
    node.write(CONFLIST, CALICO);
    await waitFor('the plugin in it again', () => chained());
    expect(kept.problem).toBeUndefined();
  });

  test('another file that has become first, and gives the one before back', async () => {
    node.write(CONFLIST, CALICO);
    const kept = keeper();
    node.write('00-multus.conflist', CALICO);
    await waitFor('the plugin in the first file', () => chained('00-multus.conflist'));
    await waitFor('the other as it was', () => node.read(CONFLIST) === CALICO);
    expect(kept.file).toBe(node.path('00-multus.conflist'));
    rmSync(node.path('00-multus.conflist'));
    await waitFor('the plugin in the remaining file', () => chained());
  });

  test('a plugin binary that was removed or replaced', async () => {
    node.write(CONFLIST, CALICO);
    const kept = keeper();
    writeFileSync(join(node.binDir, 'nodesentry-cni'), 'something else');
    await waitFor('the plugin again', () => kept.repairs === 1);
    rmSync(join(node.binDir, 'nodesentry-cni'));
    await waitFor('the plugin once more', () => kept.repairs === 2);
    expect(lines.at(-1)?.message).toContain('bin/nodesentry-cni was missing or another one');
  });

  test('a plain configuration that turns into a list, without the file that was made from it', async () => {
    node.write('10-lonely.conf', PLAIN);
    keeper();
    expect(chained('10-lonely-nodesentry.conflist')).toBe(true);
    node.write('10-lonely.conflist', CALICO);
    rmSync(node.path('10-lonely.conf'));
    await waitFor('the plugin in the list', () => chained('10-lonely.conflist'));
    await waitFor('only the list', () => node.names().join() === '10-lonely.conflist');
  });
});

describe('a problem is told, once, and goes away with its cause', () => {
  test('no configuration yet, as on a node that boots', async () => {
    rmSync(node.confDir, { recursive: true });
    const kept = keeper();
    expect(kept.problem).toMatch(/install the primary CNI first/);
    mkdirSync(node.confDir);
    node.write(CONFLIST, CALICO);
    await waitFor('the plugin', () => chained() && kept.problem === undefined);
    expect(kept.repairs).toBe(0);
    expect(lines.map(({ level }) => level)).toEqual(['error', 'info', 'info']);
  });

  test('a configuration that is not JSON, which stays untouched', async () => {
    node.write(CONFLIST, CALICO);
    const kept = keeper();
    node.write(CONFLIST, '{"half');
    await waitFor('the problem', () => kept.problem !== undefined);
    expect(kept.problem).toMatch(/10-calico\.conflist: not JSON/);
    expect(node.read(CONFLIST)).toBe('{"half');
    node.write(CONFLIST, CALICO);
    await repaired(kept, 1);
    expect(kept.problem).toBeUndefined();
  });
});

test('a file that is rewritten all the time is left alone for a minute, and said to be', async () => {
  let now = 1_000_000;
  node.write(CONFLIST, CALICO);
  const kept = keeper({ maxRepairsPerMinute: 3, nowMs: () => now });
  for (let round = 1; round <= 3; round++) {
    node.write(CONFLIST, CALICO);
    await repaired(kept, round);
  }
  node.write(CONFLIST, CALICO);
  await waitFor('the keeper to give in', () => kept.problem !== undefined);
  expect(kept.problem).toBe(
    `${node.path(CONFLIST)}: another program keeps changing it: repaired 3 times within a minute, waiting`,
  );
  expect([kept.repairs, chained()]).toEqual([3, false]);
  now += 61_000;
  await repaired(kept, 4);
  await waitFor('the problem to be over', () => kept.problem === undefined);
});

test('Cilium, which takes the file for its own, is told what makes it leave it alone', async () => {
  node.write(CONFLIST, CILIUM);
  const kept = keeper({ maxRepairsPerMinute: 1 });
  node.write(CONFLIST, CILIUM);
  await repaired(kept, 1);
  node.write(CONFLIST, CILIUM);
  await waitFor('the keeper to give in', () => kept.problem !== undefined);
  expect(kept.problem).toMatch(/within a minute, waiting; set Cilium's cni\.exclusive to false/);
});

test('files that the runtime does not use are none of its business', async () => {
  node.write(CONFLIST, CALICO);
  const kept = keeper();
  await waitFor('a quiet look', () => chained());
  const before = node.read(CONFLIST);
  node.write('99-unrelated.conflist', CALICO); // not the first: none of our business
  node.write('readme.txt', 'x');
  node.write(CONFLIST, CALICO);
  await repaired(kept, 1);
  expect([node.read(CONFLIST), node.read('99-unrelated.conflist')]).toEqual([before, CALICO]);
});

test('after the signal nothing is repaired, and what is installed stays', async () => {
  node.write(CONFLIST, CALICO);
  const kept = keeper({ lookMs: 5 });
  expect(node.chain(CONFLIST)).toEqual(CHAIN);
  stop.abort();
  node.write(CONFLIST, CALICO);
  const other = new CniNode();
  const stopOther = new AbortController();
  try {
    // Another keeper with the same pace has repaired twice by then.
    const log = { info: () => undefined, warn: () => undefined, error: () => undefined };
    other.write(CONFLIST, CALICO);
    const busy = new ConflistKeeper({ ...other.options, log, lookMs: 5 });
    busy.start(stopOther.signal);
    for (const times of [1, 2]) {
      other.write(CONFLIST, CALICO);
      await waitFor('the other keeper', () => busy.repairs === times);
    }
  } finally {
    stopOther.abort();
    other.close();
  }
  expect([kept.repairs, chained()]).toEqual([0, false]);
});
