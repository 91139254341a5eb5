/** What goes over an interface, frame by frame: the judge of whatever must not. */

import { readFileSync } from 'node:fs';
import { join } from 'node:path';
import { waitFor } from './exec.js';
import type { Lab } from './lab.js';

const FILE_HEADER_BYTES = 24;
const RECORD_HEADER_BYTES = 16;

export class Capture {
  readonly #path: string;

  private constructor(path: string) {
    this.#path = path;
  }

  /** Begins at once, and ends with the lab. */
  static async start(lab: Lab, netns: string, link: string): Promise<Capture> {
    const path = join(lab.directory, `${netns}-${link}.pcap`);
    const words = ['-i', link, '-U', '--immediate-mode', '-s', '0', '-B', '65536', '-Z', 'root', '-w', path];
    const daemon = lab.daemon(netns, `capture-${link}`, 'tcpdump', words);
    await daemon.logged(/listening on/);
    return new Capture(path);
  }

  /** Of the form of pcap-savefile(5), in this machine's byte order. */
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
      () => this.frames().some((frame) => frame.includes(bytes)),
      10_000,
    );
  }
}
