/** What goes over an interface, frame by frame: the judge of whatever must not. It proves that it was awake. */

import { randomUUID } from 'node:crypto';
import { readFileSync } from 'node:fs';
import { join } from 'node:path';
import { bytesToIp } from '../../src/net/ip.js';
import { formatSocketAddress } from '../../src/net/socket-address.js';
import { type Daemon, runIn, waitFor } from './exec.js';
import { type Lab, REMOTE } from './lab.js';

const FILE_HEADER_BYTES = 24;
const RECORD_HEADER_BYTES = 16;
/** Discard: where the marker packets of a capture go. */
const MARKER_PORT = 9;
/** TCP of the lab's pods: on the uplink, what has passed the proxy by. */
export const POD_TCP = 'tcp and (src net 10.66.0.0/16 or src net fd00:66::/32)';

/** The same of pods that serve at port 80: without the answers of a proxy in their name. */
export const POD_DIALS = `(${POD_TCP}) and not src port 80`;

let captures = 0;

export class Capture {
  readonly #lab: Lab;
  readonly #path: string;
  readonly #daemon: Daemon;

  private constructor(lab: Lab, path: string, daemon: Daemon) {
    this.#lab = lab;
    this.#path = path;
    this.#daemon = daemon;
  }

  /** Begins at once, and ends with the lab. `filter`: of pcap-filter(7); without it every frame. */
  static async start(lab: Lab, netns: string, link: string, filter?: string): Promise<Capture> {
    captures += 1;
    const name = `capture-${captures}-${link}`;
    const path = join(lab.directory, `${name}.pcap`);
    const words = ['-i', link, '-U', '--immediate-mode', '-s', '0', '-B', '65536', '-Z', 'root', '-w', path];
    const wanted = filter === undefined ? [] : [`(${filter}) or (udp and dst port ${MARKER_PORT})`];
    const daemon = lab.daemon(netns, name, 'tcpdump', [...words, ...wanted]);
    await daemon.logged(/listening on/);
    return new Capture(lab, path, daemon);
  }

  /** So far, of the form of pcap-savefile(5), in this machine's byte order. */
  frames(): Buffer[] {
    const file = readFileSync(this.#path);
    const found: Buffer[] = [];
    for (let at = FILE_HEADER_BYTES; at + RECORD_HEADER_BYTES <= file.length; ) {
      const from = at + RECORD_HEADER_BYTES;
      at = from + file.readUInt32LE(at + 8);
      if (at <= file.length) {
        found.push(file.subarray(from, at));
      }
    }
    return found;
  }

  /** Waits for a frame with these bytes in it: whatever was sent before it by the same way has been captured by then. */
  async sees(bytes: Buffer): Promise<void> {
    await waitFor(
      `a frame with ${bytes.toString()}`,
      () => {
        if (!this.#daemon.running) {
          throw new Error(`the capture has ended: ${this.#daemon.log()}`);
        }
        return this.frames().some((frame) => frame.includes(bytes));
      },
      10_000,
    );
  }

  /**
   * All frames until now but its own markers. A marker that the node sends to the remote has to arrive, and the kernel must
   * have dropped no frame: only then does an empty list mean anything. For captures of the uplink, at either end.
   * `family`: of the marker, for nodes that have only one.
   */
  async all(family: 4 | 6 = 4): Promise<Buffer[]> {
    const marker = Buffer.from(`marker ${randomUUID()}`);
    await runIn(this.#lab.node, 'bash', [
      '-c',
      `printf '%s' '${marker}' >/dev/udp/${REMOTE[family]}/${MARKER_PORT}`,
    ]);
    await this.sees(marker);
    const said = this.#daemon.log().length;
    process.kill(this.#daemon.pid, 'SIGUSR1');
    const counts = await waitFor(
      'tcpdump to tell its counts',
      () => /(\d+) packets dropped by kernel/.exec(this.#daemon.log().slice(said)) ?? undefined,
    );
    if (counts[1] !== '0') {
      throw new Error(`the capture is not whole: ${counts[0]}`);
    }
    return this.frames().filter((frame) => !frame.includes('marker '));
  }

  /** The same as `from > to`, with addresses as they are usually written. */
  async flows(family?: 4 | 6): Promise<string[]> {
    return (await this.all(family)).map(flowOf);
  }

  async stop(): Promise<void> {
    await this.#daemon.stop();
  }
}

/** Who sent it and to whom, as addresses and ports of a TCP or UDP frame are written. */
function flowOf(frame: Buffer): string {
  const isV6 = frame.readUInt16BE(12) === 0x86dd;
  const ip = frame.subarray(14);
  const at = isV6 ? 40 : (ip.readUInt8(0) & 0xf) * 4;
  const [src, dst] = isV6
    ? [bytesToIp(ip.subarray(8, 24)), bytesToIp(ip.subarray(24, 40))]
    : [ip.subarray(12, 16).join('.'), ip.subarray(16, 20).join('.')];
  const [sport, dport] = [ip.readUInt16BE(at), ip.readUInt16BE(at + 2)];
  return [formatSocketAddress({ ip: src, port: sport }), formatSocketAddress({ ip: dst, port: dport })].join(
    ' > ',
  );
}
