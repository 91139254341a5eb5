/** A relay between Unix sockets that can do what happens to streams: cut anywhere, gone silent, or another server behind. */

import { connect, createServer, type Server, type Socket } from 'node:net';

export class UnixRelay {
  readonly path: string;
  readonly #server: Server;
  readonly #pairs = new Set<readonly [Socket, Socket]>();
  #target: string;
  /** Connections so far. */
  accepted = 0;
  /** Every connection from now on is cut after so many bytes of answers. */
  cutAfterBytes = Number.POSITIVE_INFINITY;
  refusing = false;

  private constructor(path: string, target: string) {
    this.path = path;
    this.#target = target;
    this.#server = createServer((near) => this.#pair(near));
  }

  static async open(path: string, target: string): Promise<UnixRelay> {
    const relay = new UnixRelay(path, target);
    await new Promise<void>((resolve) => relay.#server.listen(path, resolve));
    return relay;
  }

  get open(): number {
    return this.#pairs.size;
  }

  /** For connections from now on; those that are open are cut. */
  switchTo(target: string): void {
    this.#target = target;
    this.cut();
  }

  cut(): void {
    for (const pair of [...this.#pairs]) {
      for (const socket of pair) {
        socket.destroy();
      }
    }
  }

  /** What is connected stays so and hears nothing more. */
  stall(): void {
    for (const [near, far] of this.#pairs) {
      far.removeAllListeners('data').pause();
      near.pause();
    }
  }

  async close(): Promise<void> {
    const closed = new Promise<void>((resolve) => this.#server.close(() => resolve()));
    this.cut();
    await closed;
  }

  #pair(near: Socket): void {
    this.accepted += 1;
    if (this.refusing) {
      near.destroy();
      return;
    }
    const far = connect(this.#target);
    const pair = [near, far] as const;
    this.#pairs.add(pair);
    const end = (): void => {
      this.#pairs.delete(pair);
      near.destroy();
      far.destroy();
    };
    for (const socket of pair) {
      socket.on('error', end);
      socket.on('close', end);
    }
    near.pipe(far);
    let room = this.cutAfterBytes;
    far.on('data', (chunk: Buffer) => {
      near.write(chunk.subarray(0, room), () => {
        if (room < 0) {
          end();
        }
      });
      room -= chunk.length;
    });
  }
}
