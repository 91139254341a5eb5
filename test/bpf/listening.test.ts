/** The kernel tells of sockets that begin and stop to listen in our own network namespace, and of no others. */

import { type AddressInfo, createServer, type Server } from 'node:net';
import { afterEach, expect, it, vi } from 'vitest';
import { watchListening } from '../../src/datapath/listening.js';
import { Cleanup, Netns } from '../unit/native-lab.js';
import { OBJECTS } from './datapath-lab.js';

const cleanup = new Cleanup();
afterEach(() => cleanup.run());

/** Without a host name to look up, the socket listens before `listen` returns. */
function listenIn(netns: Netns): Server {
  const server = netns.run(() => createServer().listen(0));
  return cleanup.add(server, () => void server.close());
}

it('begins and stops are told, of this namespace alone, until it is closed', async () => {
  const [own, other] = [cleanup.owned(new Netns()), cleanup.owned(new Netns())];
  const changed = vi.fn();
  const watch = own.run(() => watchListening({ objects: OBJECTS, changed }));
  if (!('close' in watch)) {
    throw new Error(watch.problem);
  }
  const elsewhere = listenIn(other);
  const here = listenIn(own);
  await vi.waitFor(() => expect(changed).toHaveBeenCalledTimes(1));
  elsewhere.close();
  here.close();
  await vi.waitFor(() => expect(changed).toHaveBeenCalledTimes(2));
  watch.close();
  listenIn(own).close();
  await new Promise((resolve) => setTimeout(resolve, 100));
  expect(changed).toHaveBeenCalledTimes(2);
});

it('connections that a listener accepts are not told', async () => {
  const own = cleanup.owned(new Netns());
  own.exec('ip', 'link', 'set', 'lo', 'up');
  const changed = vi.fn();
  const watch = own.run(() => watchListening({ objects: OBJECTS, changed }));
  if (!('close' in watch)) {
    throw new Error(watch.problem);
  }
  cleanup.owned(watch);
  const server = listenIn(own);
  let accepted = 0;
  server.on('connection', (socket) => {
    accepted += 1;
    socket.destroy();
  });
  await vi.waitFor(() => expect(changed).toHaveBeenCalledTimes(1));
  const { port } = server.address() as AddressInfo;
  own.exec('bash', '-c', `for i in {1..10}; do exec 3<>/dev/tcp/127.0.0.1/${port}; done`);
  await vi.waitFor(() => expect(accepted).toBe(10));
  await new Promise((resolve) => setTimeout(resolve, 100));
  expect(changed).toHaveBeenCalledTimes(1);
});
