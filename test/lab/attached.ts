/** What runs at a namespace's interfaces, asked of the kernel by our addon: Debian's bpftool (7.1) does not know tcx. */

import { queryTcx } from '../../src/native/bpf.js';
import { closeFd } from '../../src/native/descriptors.js';
import { openNamespace, withNetns } from '../../src/native/namespaces.js';
import { runIn } from './exec.js';
import type { Lab } from './lab.js';

export interface Attached {
  readonly interface: string;
  readonly direction: 'ingress' | 'egress';
  readonly linkId: number;
  readonly programId: number;
}

/** Every tcx program of the node, in the kernel's order. */
export async function attachedOn({ node }: Lab): Promise<Attached[]> {
  const links = JSON.parse(await runIn(node, 'ip', ['-j', 'link'])) as { ifindex: number; ifname: string }[];
  const netns = openNamespace(`/run/netns/${node}`);
  try {
    return withNetns(netns, () =>
      links.flatMap(({ ifindex, ifname }) =>
        (['ingress', 'egress'] as const).flatMap((direction) =>
          queryTcx(ifindex, direction).map(({ linkId, programId }) => ({
            interface: ifname,
            direction,
            linkId,
            programId,
          })),
        ),
      ),
    );
  } finally {
    closeFd(netns);
  }
}
