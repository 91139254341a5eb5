// Feeds a registry that names the node in the place of its pods: follows the identities of this node, and keeps a file with
// its apps, replaced as a whole whenever anything of it changes.
//
//     npx tsx feed.ts /run/nodesentry/http.sock registry.json

import { renameSync, writeFileSync } from 'node:fs';
import { IdentityClient } from 'nodesentry/client';

const [, , socket = '/run/nodesentry/http.sock', file = 'registry.json'] = process.argv;
const client = new IdentityClient({ socket });
let isDue = false;

function write(): void {
  isDue = false;
  if (!client.synced) {
    return; // what the file says stays until we know better
  }
  const apps: Record<string, { node: string; pods: { spiffeId: string; ips: readonly string[] }[] }> = {};
  for (const { app, node, spiffeId, ips } of client.workloads()) {
    if (app !== '' && spiffeId !== '') {
      apps[app] ??= { node, pods: [] };
      apps[app].pods.push({ spiffeId, ips });
    }
  }
  writeFileSync(`${file}.new`, `${JSON.stringify(apps, null, 2)}\n`);
  renameSync(`${file}.new`, file);
}

/** Once for what comes together. */
function soon(): void {
  if (!isDue) {
    isDue = true;
    setTimeout(write, 50);
  }
}

client.on('synced', soon);
client.on('change', soon);
