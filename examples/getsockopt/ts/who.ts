// A proxy's part of the identity API in TypeScript: listens where nodesentry hands over what it intercepts, and says for
// each connection, as a line, who has opened it and to where.
//
//     npx tsx who.ts 127.0.0.1 15001

import { createServer } from 'node:net';
import { identityOf, SocketIdentityError, spiffeIdOf } from 'nodesentry/client/socket';

const [, , host, port] = process.argv;

createServer((socket) => {
  try {
    const { namespace, podName, generation } = identityOf(socket);
    // What the app has dialled is the connection's own address here (TPROXY).
    const to = `${socket.localAddress}:${socket.localPort}`;
    socket.end(`${spiffeIdOf(socket)} pod=${namespace}/${podName} generation=${generation} to=${to}\n`);
  } catch (error) {
    socket.end(`refused: ${error instanceof SocketIdentityError ? error.reason : String(error)}\n`);
  }
}).listen(Number(port), host);
