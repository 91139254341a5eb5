/** What runs at a namespace's interfaces, asked of the kernel by our addon: Debian's bpftool (7.1) does not know tcx. */

import { CLSACT } from '../../src/kernel/clsact.js';
import { queryClsact, queryTcx, tcxSupported } from '../../src/native/bpf.js';
import { closeFd } from '../../src/native/descriptors.js';
import { openNamespace, withNetns } from '../../src/native/namespaces.js';
import { runIn } from './exec.js';
import type { Lab } from './lab.js';

export interface Attached {
  readonly interface: string;
  readonly direction: 'ingress' | 'egress';
  /** Of a tcx link; a filter of clsact, at the place that is ours, has none. */
  readonly linkId?: number;
  readonly programId: number;
}

function tcxAt(ifindex: number, direction: 'ingress' | 'egress') {
  return tcxSupported()
    ? queryTcx(ifindex, direction).map(({ linkId, programId }) => ({ linkId, programId }))
    : [];
}

/** Every tcx program of the node, in the kernel's order, and what stands at our place of clsact. */
export async function attachedOn({ node }: Lab): Promise<Attached[]> {
  const links = JSON.parse(await runIn(node, 'ip', ['-j', 'link'])) as { ifindex: number; ifname: string }[];
  const netns = openNamespace(`/run/netns/${node}`);
  try {
    return withNetns(netns, () =>
      links.flatMap(({ ifindex, ifname }) =>
        (['ingress', 'egress'] as const).flatMap((direction) => {
          const filter = queryClsact(ifindex, direction, CLSACT);
          return [
            ...tcxAt(ifindex, direction),
            ...(filter === undefined ? [] : [{ programId: filter.programId }]),
          ].map((program) => ({ interface: ifname, direction, ...program }));
        }),
      ),
    );
  } finally {
    closeFd(netns);
  }
}
