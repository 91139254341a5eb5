/** What a process writes, in a file that outlives whoever reads it, line by line into the log. */

import { closeSync, constants, fstatSync, ftruncateSync, openSync, readSync, rmSync } from 'node:fs';

const CHUNK_BYTES = 64 * 1024;
/** Of one look: what is written faster waits for the next. */
const CHUNKS_AT_ONCE = 8;
/** A longer line is cut. */
const LINE_BYTES = 16 * 1024;
export const KEPT_BYTES = 1024 * 1024;

export class Output {
  readonly path: string;
  readonly #tell: (line: string) => void;
  readonly #fd: number;
  #offset: number;

  /** `offset`: what was told before. Throws what open(2) says. */
  constructor(path: string, offset: number, tell: (line: string) => void) {
    const { O_RDWR, O_APPEND, O_CREAT } = constants;
    this.path = path;
    this.#tell = tell;
    this.#fd = openSync(path, O_RDWR | O_APPEND | O_CREAT, 0o600);
    this.#offset = offset;
  }

  /** For the process to write to. */
  get fd(): number {
    return this.#fd;
  }

  get offset(): number {
    return this.#offset;
  }

  /** `ended`: what stands behind the last end of a line is a line too. */
  read(ended = false): void {
    const { size } = fstatSync(this.#fd);
    if (size < this.#offset) {
      this.#offset = 0; // somebody else has cut it
    }
    for (let chunk = 0; chunk < CHUNKS_AT_ONCE && this.#offset < size; chunk += 1) {
      const before = this.#offset;
      this.#chunk(ended);
      if (this.#offset === before) {
        return;
      }
    }
    // What is written in between is lost; the alternative is a node whose /run is full.
    if (this.#offset > KEPT_BYTES && fstatSync(this.#fd).size === this.#offset) {
      ftruncateSync(this.#fd);
      this.#offset = 0;
    }
  }

  #chunk(ended: boolean): void {
    const bytes = Buffer.alloc(CHUNK_BYTES);
    const read = bytes.subarray(0, readSync(this.#fd, bytes, 0, bytes.length, this.#offset));
    let begin = 0;
    while (begin < read.length) {
      const newline = read.indexOf('\n', begin);
      const whole = newline >= 0 && newline - begin <= LINE_BYTES;
      const end = whole ? newline : Math.min(read.length, begin + LINE_BYTES);
      if (!whole && end - begin < LINE_BYTES && !ended) {
        break;
      }
      if (end > begin) {
        this.#tell(read.toString('utf8', begin, end));
      }
      begin = whole ? end + 1 : end;
    }
    this.#offset += begin;
  }

  close(): void {
    closeSync(this.#fd);
  }

  remove(): void {
    rmSync(this.path, { force: true });
  }
}
