/** The splice taken away at once, with connections open: none of them loses a byte without noticing. */

import { join } from 'node:path';
import { setTimeout as delay } from 'node:timers/promises';
import { openObjectFile } from '../kernel/pins.js';
import { Struct } from '../kernel/struct.js';
import { BpfMap, BpfProgram } from '../native/bpf.js';
import { endTcpConnections, openTcpConnectionsWith, type TcpConnection } from '../native/sockets.js';
import { bytesToIp } from '../net/ip.js';
import { formatSocketAddress } from '../net/socket-address.js';
import { disable, LOOK, socketsIn, spliceFolders, unpin } from './splice.js';

/** For whoever reads to read what is there. */
const PATIENCE_MS = 5_000;
const LOOK_MS = 20;
/** The least that a program of its kind can be run on. */
const FRAME = new Uint8Array(14);

/**
 * Waits for what has been spliced to be read; connections where that takes too long are reset rather than cut short.
 * Returns what was taken away, in words. `objects`: the folder with the compiled objects.
 */
export async function removeSplice(bpffs: string, objects: string): Promise<string[]> {
  const removed: string[] = [];
  for (const folder of spliceFolders(bpffs)) {
    disable(folder);
    const until = performance.now() + PATIENCE_MS;
    while (socketsIn(folder) > 0 && waiting(folder, objects).length > 0 && performance.now() < until) {
      await delay(LOOK_MS);
    }
    const unread = socketsIn(folder) > 0 ? waiting(folder, objects) : [];
    const ended = endTcpConnections(unread);
    unpin(folder);
    removed.push(
      `splice, pinned in ${folder}`,
      ...(ended === 0
        ? []
        : [`${ended} connections whose bytes nobody had read in ${PATIENCE_MS / 1_000} s`]),
    );
  }
  return removed;
}

/** The node's ends of the connections that have spliced bytes waiting; each spliced connection has one. */
function waiting(folder: string, objects: string): TcpConnection[] {
  const look = BpfProgram.openPinned(join(folder, LOOK));
  const socks = BpfMap.openPinned(join(folder, 'splice_socks'));
  const object = openObjectFile(objects, 'splice');
  try {
    look.testRun({ data: FRAME });
    const key = new Struct(object.layout('splice_key'), ['flow']);
    const flow = new Struct(object.layout('flow_key'), ['src', 'dst', 'sport', 'dport']);
    const row = new Struct(object.layout('splice_sock'), ['waiting']);
    const rows = socks.entries().filter(([, value]) => row.number(value, 'waiting') > 0);
    const addresses = rows.flatMap(([bytes]) => {
      const tuple = key.bytes(bytes, 'flow');
      return [flow.bytes(tuple, 'src'), flow.bytes(tuple, 'dst')];
    });
    const tuples = new Set(
      rows.map(([bytes]) => {
        const tuple = key.bytes(bytes, 'flow');
        const end = (ip: 'src' | 'dst', port: 'sport' | 'dport') =>
          formatSocketAddress({ ip: bytesToIp(flow.bytes(tuple, ip)), port: flow.number(tuple, port) });
        return `${end('src', 'sport')} ${end('dst', 'dport')}`;
      }),
    );
    return openTcpConnectionsWith(addresses).filter(({ local, peer }) => {
      const [own, other] = [formatSocketAddress(local), formatSocketAddress(peer)];
      return tuples.has(`${own} ${other}`) || tuples.has(`${other} ${own}`);
    });
  } finally {
    object.close();
    socks.close();
    look.close();
  }
}
