/** What of ours the kernel has, by the ids that it gave: names are no proof on a machine that others load programs on too. */

import { readdirSync } from 'node:fs';
import { join } from 'node:path';
import { BpfLink, BpfMap, BpfProgram } from '../../src/native/bpf.js';
import { run, tryRun } from './exec.js';

export interface KernelIds {
  readonly prog: ReadonlySet<number>;
  readonly map: ReadonlySet<number>;
  readonly link: ReadonlySet<number>;
}

/** All that is pinned below `folder` (of one layout), and what those programs refer to: a map need not be pinned to be there. */
export async function pinnedIds(folder: string): Promise<KernelIds> {
  const ids = { prog: new Set<number>(), map: new Set<number>(), link: new Set<number>() };
  const each = <T extends { close(): void }>(
    kind: string,
    open: (path: string) => T,
    note: (handle: T) => void,
  ): void => {
    for (const name of readdirSync(join(folder, kind))) {
      const handle = open(join(folder, kind, name));
      note(handle);
      handle.close();
    }
  };
  each('maps', BpfMap.openPinned, ({ id }) => ids.map.add(id));
  each('programs', BpfProgram.openPinned, ({ id }) => ids.prog.add(id));
  each('links', BpfLink.openPinned, ({ id, programId }) => {
    ids.link.add(id);
    ids.prog.add(programId);
  });
  for (const id of ids.prog) {
    const shown = JSON.parse(await run('bpftool', ['-j', 'prog', 'show', 'id', String(id)]));
    for (const map of (shown as { map_ids?: number[] }).map_ids ?? []) {
      ids.map.add(map);
    }
  }
  return ids;
}

/** Those of them that the kernel still has. Another process may only get numbers that were never given out before. */
export async function stillThere(ids: KernelIds): Promise<string[]> {
  const found: string[] = [];
  for (const kind of ['prog', 'map', 'link'] as const) {
    for (const id of ids[kind]) {
      const { code, stdout, stderr } = await tryRun('bpftool', [kind, 'show', 'id', String(id)]);
      if (code === 0) {
        found.push(`${kind} ${stdout.split('\n')[0]}`);
      } else if (!/No such file or directory/.test(stderr)) {
        throw new Error(`bpftool ${kind} show id ${id}: ${stderr}`);
      }
    }
  }
  return found;
}
