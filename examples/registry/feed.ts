// Tells a registry which apps this node serves, and where: the node in the place of each pod. Follows nodesentry and keeps a
// JSON file, replaced as a whole whenever it becomes another, for the registry's own agent to publish.
//
//     npx tsx feed.ts /run/nodesentry/http.sock /run/registry/node.json 10.0.0.5:15006

import { renameSync, writeFileSync } from 'node:fs';
import { get } from 'node:http';
import { setTimeout as delay } from 'node:timers/promises';
import { IdentityClient, type Workload } from 'nodesentry/client';

const [, , socket, file, address] = process.argv;
if (socket === undefined || file === undefined || address === undefined) {
  console.error('usage: feed.ts SOCKET FILE ADDRESS:PORT');
  process.exit(2);
}
const client = new IdentityClient({ socket });
let written = '';
let isDue = false;
/** The copy has the pods of all sources, not only of those that an agent that has just started has heard. */
let isComplete = false;

client.on('synced', complete);
client.on('change', writeSoon);
client.on('lost', (cause) => {
  // While the agent is away the pods are there all the same.
  isComplete = false;
  console.error(`${cause}: ${file} stays as it is until the agent knows all pods again`);
});
process.once('SIGTERM', () => client.close());
process.once('SIGINT', () => client.close());

async function complete(): Promise<void> {
  while (client.synced && !(await isReady())) {
    await delay(500);
  }
  isComplete = client.synced;
  writeSoon();
}

function isReady(): Promise<boolean> {
  return new Promise((resolve) => {
    get({ socketPath: socket, path: '/readyz', agent: false }, (response) => {
      response.resume();
      resolve(response.statusCode === 200);
    }).on('error', () => resolve(false));
  });
}

/** Once for all changes that come together. */
function writeSoon(): void {
  if (!isDue) {
    isDue = true;
    setImmediate(write);
  }
}

function write(): void {
  isDue = false;
  if (!isComplete) {
    return;
  }
  const text = `${JSON.stringify({ apps: appsOf(client.workloads()) }, undefined, 2)}\n`;
  if (text !== written) {
    writeFileSync(`${file}.new`, text);
    renameSync(`${file}.new`, `${file}`);
    written = text;
  }
}

/** Sorted, so that the same pods are the same text. Apps of one name in two namespaces are two. */
function appsOf(workloads: readonly Workload[]): object[] {
  const named = workloads.filter(({ app, spiffeId }) => app !== '' && spiffeId !== '');
  const keyOf = ({ namespace, app }: Workload) => `${namespace}/${app}`;
  return [...new Set(named.map(keyOf))].sort().map((key) => {
    const pods = named.filter((workload) => keyOf(workload) === key);
    const [namespace, app] = key.split('/');
    return {
      namespace,
      app,
      node: pods[0]?.node,
      address,
      pods: pods
        .map(({ uid, podName, spiffeId, ips }) => ({ uid, podName, spiffeId, ips }))
        .sort((a, b) => (a.uid < b.uid ? -1 : 1)),
    };
  });
}
