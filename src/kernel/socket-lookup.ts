/** Attaching to socket lookup (sk_lookup) of the network namespace that the agent works in. */

import { join } from 'node:path';
import { attachSkLookup, type BpfLink, type BpfProgram } from '../native/bpf.js';
import { closeFd } from '../native/descriptors.js';
import { openNamespace } from '../native/namespaces.js';
import { linkPin } from './object-set.js';
import { PinnedLink } from './pinned-link.js';

export class SocketLookup extends PinnedLink {
  /** What it attaches, it attaches in the network namespace of the moment. */
  constructor(linksPath: string, role: string) {
    super(join(linksPath, linkPin(role)), attachHere);
  }
}

function attachHere(program: BpfProgram): BpfLink {
  const netns = openNamespace('/proc/thread-self/ns/net');
  try {
    return attachSkLookup(program, netns);
  } finally {
    closeFd(netns);
  }
}
