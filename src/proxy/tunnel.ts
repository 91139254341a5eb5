/** Two sockets made one: bytes, half-close, resets and idleness pass from each to the other. */

import type { Socket } from 'node:net';

/** Calls `onEnd` once, when both are closed. `idleMs`: neither side said anything for that long; 0 for never. */
export function tunnel(a: Socket, b: Socket, idleMs: number, onEnd: () => void): void {
  let open = 2;
  const half = (from: Socket, to: Socket): void => {
    from.setTimeout(idleMs, () => reset(from));
    from.on('error', () => reset(to));
    from.once('close', () => {
      // Closed without having said all or heard all: not an end that the other side may take for one.
      if (!from.readableEnded || !from.writableFinished) {
        reset(to);
      }
      open -= 1;
      if (open === 0) {
        onEnd();
      }
    });
    from.pipe(to);
  };
  half(a, b);
  half(b, a);
}

/** A reset rather than a clean end, so that the peer cannot take a failure for the end of the data. */
export function reset(socket: Socket): void {
  if (socket.destroyed) {
    return;
  }
  if (socket.connecting) {
    socket.destroy();
  } else {
    socket.resetAndDestroy();
  }
}
