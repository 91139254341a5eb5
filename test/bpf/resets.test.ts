/** Resets of the node's own TCP are counted for the instance whose flow they end. */

import { execFileSync } from 'node:child_process';
import { join } from 'node:path';
import { afterEach, beforeEach, expect, it } from 'vitest';
import { Generations } from '../../src/datapath/generations.js';
import type { DatapathPrograms } from '../../src/datapath/manifest.js';
import { watchResets } from '../../src/datapath/resets.js';
import { Cleanup, Netns, temporaryBpffs } from '../unit/native-lab.js';
import { OBJECTS, openIn } from './datapath-lab.js';
import { addAddress, FAR, flowKeyOf, POD } from './test-run.js';

const INSTANCE = 7;
const PORT = 4711;

const cleanup = new Cleanup();
let node: Netns;
let programs: DatapathPrograms;
let generations: Generations;

beforeEach(() => {
  node = cleanup.owned(new Netns());
  programs = openIn(cleanup, join(temporaryBpffs(cleanup), 'nodesentry'));
  const { maps, layouts } = programs;
  generations = new Generations({ ...maps, layouts });
  for (const family of [4, 6] as const) {
    addAddress(node.path, FAR[family]);
    addAddress(node.path, POD[family]);
  }
});

afterEach(() => cleanup.run());

/** `POD` dials `FAR` from `sport`; who is there resets what it has accepted, or ends it in order. */
function connection(family: 4 | 6, sport: number, resets: boolean): void {
  const code = `
    const net = require('net');
    const server = net.createServer((socket) => ${resets ? 'socket.resetAndDestroy()' : 'socket.end()'});
    server.listen(${PORT}, '${FAR[family]}', () => {
      const client = net.connect({ port: ${PORT}, host: '${FAR[family]}', localAddress: '${POD[family]}', localPort: ${sport} });
      client.resume().on('error', () => {}).on('close', () => server.close());
    });`;
  execFileSync('nsenter', [`--net=${node.path}`, process.execPath, '-e', code]);
}

function record(family: 4 | 6, sport: number): void {
  const { maps, layouts } = programs;
  const tuple = { src: POD[family], dst: FAR[family], sport, dport: PORT };
  maps.flows.set(flowKeyOf(layouts, tuple), layouts.flow.encode({ endpoint: 1, instance: INSTANCE }));
}

it.each([4, 6] as const)('of IPv%i, of recorded flows alone, and only while they are watched', (family) => {
  record(family, 5001);
  connection(family, 5001, true);
  expect(generations.counts(INSTANCE).reset).toBe(0);
  const watch = watchResets({ objects: OBJECTS, maps: programs.maps });
  if (!('link' in watch)) {
    throw new Error(watch.problem);
  }
  connection(family, 5001, true);
  expect(generations.counts(INSTANCE)).toEqual({ started: 0, reset: 1 });
  connection(family, 5002, true);
  record(family, 5003);
  connection(family, 5003, false);
  expect(generations.counts(INSTANCE).reset).toBe(1);
  watch.link.close();
  connection(family, 5001, true);
  expect(generations.counts(INSTANCE).reset).toBe(1);
});
