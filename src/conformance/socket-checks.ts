/** getsockopt(2): what the kernel says of a connection is what the agent says of it. */

import { createServer, type Socket } from 'node:net';
import { identityOf, SocketIdentityError, spiffeIdOf } from '../client/socket-identity.js';
import { socketInfo } from '../native/sockets.js';
import { formatSocketAddress } from '../net/socket-address.js';
import { type Check, type Context, same, truth } from './check.js';

const ADOPTION_MS = 10_000;
const CONNECTIONS_MS = 10_000;

export const SOCKET_CHECKS: readonly Check[] = [
  {
    id: 'getsockopt',
    says: 'the kernel names the ends of an accepted connection as the agent does, also by the cookie of the socket',
    run: async (context) => {
      if (context.listener === undefined) {
        return 'no --getsockopt-listener is given';
      }
      const { host, port } = context.listener;
      let compared = 0;
      const failures: unknown[] = [];
      const pending: Promise<void>[] = [];
      const server = createServer((socket) => {
        socket.on('error', () => socket.destroy());
        pending.push(
          compare(context, socket)
            .then((isNamed) => {
              compared += isNamed ? 1 : 0;
            })
            .catch((error: unknown) => void failures.push(error))
            .finally(() => socket.end()),
        );
      });
      await new Promise<void>((resolve, reject) => server.once('error', reject).listen(port, host, resolve));
      try {
        await adopted(context, formatSocketAddress({ ip: host, port }));
        const deadline = performance.now() + CONNECTIONS_MS;
        while (compared < 3 && failures.length === 0 && performance.now() < deadline) {
          await new Promise((resolve) => setTimeout(resolve, 20));
        }
        await Promise.all(pending);
      } finally {
        server.close();
      }
      if (failures.length > 0) {
        throw failures[0];
      }
      return compared === 0 ? `no connection of a pod came within ${CONNECTIONS_MS} ms` : undefined;
    },
  },
];

async function adopted({ http }: Context, address: string): Promise<void> {
  const deadline = performance.now() + ADOPTION_MS;
  for (;;) {
    const { body } = await http.send('GET', '/v1/status');
    const { listeners } = body as { listeners: readonly { address: string; adopted: boolean }[] };
    if (listeners.some((listener) => listener.address === address && listener.adopted)) {
      return;
    }
    truth(`${address} was not adopted within ${ADOPTION_MS} ms`, performance.now() < deadline);
    await new Promise((resolve) => setTimeout(resolve, 50));
  }
}

/** Whether it is a pod's. */
async function compare({ http, grpc }: Context, socket: Socket): Promise<boolean> {
  const { remoteAddress = '', remotePort = 0, localAddress = '', localPort = 0 } = socket;
  const own = (['peer', 'target'] as const).flatMap((end) => {
    try {
      const identity = identityOf(socket, end);
      return identity.assurance === 'DATAPATH_RECORDED'
        ? [{ ...identity, spiffeId: spiffeIdOf(socket, end) }]
        : [];
    } catch (error) {
      if (error instanceof SocketIdentityError) {
        return [];
      }
      throw error;
    }
  })[0];
  const plain = (ip: string) => ip.replace(/^::ffff:(?=\d+\.)/, '');
  const asked = {
    proto: 'tcp',
    src: formatSocketAddress({ ip: plain(remoteAddress), port: remotePort }),
    dst: formatSocketAddress({ ip: plain(localAddress), port: localPort }),
  };
  const socketCookie = cookieOf(socket);
  for (const door of [http, grpc]) {
    const answer = await door.ask(asked);
    if (socketCookie !== undefined) {
      same(`socket ${socketCookie} and its flow, ${door.name}`, answer, await door.ask({ socketCookie }));
    }
    const what = `${asked.src} to ${asked.dst}, getsockopt and ${door.name}`;
    if ('reason' in answer) {
      truth(`${what}: ${own?.spiffeId} and ${answer.reason}`, own === undefined);
      continue;
    }
    same(what, own && [own.podUid, own.spiffeId, own.direction, own.assurance, own.instance], [
      answer.podUid,
      answer.spiffeId,
      answer.direction,
      answer.assurance,
      answer.instance,
    ]);
  }
  return own !== undefined;
}

/** SO_COOKIE, which the agent finds where the checks run in its network namespace; undefined once it is closed. */
function cookieOf(socket: Socket): string | undefined {
  const { _handle: handle } = socket as unknown as { readonly _handle?: { readonly fd: number } | null };
  return handle == null || socket.destroyed ? undefined : String(socketInfo(handle.fd).cookie);
}
