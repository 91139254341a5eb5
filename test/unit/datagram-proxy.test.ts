/** The reference proxy's part for UDP, before real servers; how datagrams come and go is made up (test/e2e/udp.test.ts). */

import { execFile } from 'node:child_process';
import { createSocket, type Socket } from 'node:dgram';
import { once } from 'node:events';
import { promisify } from 'node:util';
import { afterEach, beforeEach, expect, test } from 'vitest';
import { ApiError } from '../../src/api/client.js';
import type { Resolution } from '../../src/identity/resolve.js';
import { DatagramSender, listenForDatagrams } from '../../src/native/datagrams.js';
import type { SocketAddress } from '../../src/net/socket-address.js';
import { type DatagramProxyOptions, startDatagramProxy } from '../../src/proxy/datagrams.js';
import { waitFor } from '../lab/exec.js';
import { Cleanup, Netns } from './native-lab.js';

const execFileAsync = promisify(execFile);
const cleanup = new Cleanup();
afterEach(() => cleanup.run());

const WEB = {
  workload: { namespace: 'default', podName: 'web-0', spiffeId: 'spiffe://cluster.local/ns/default/sa/web' },
  direction: 'EGRESS',
  assurance: 'DATAPATH_RECORDED',
} as Resolution;
const CLIENT: SocketAddress = { ip: '10.66.0.3', port: 5_353 };

interface Answer {
  readonly from: SocketAddress;
  readonly to: SocketAddress;
  readonly text: string;
}

let echo: Socket;
let server: SocketAddress;
/** What the echo server has been sent. */
const seen: string[] = [];

beforeEach(async () => {
  seen.length = 0;
  echo = createSocket('udp4');
  cleanup.owned(echo);
  echo.on('message', (data, { port, address }) => {
    seen.push(data.toString());
    echo.send(`re: ${data}`, port, address);
  });
  echo.bind(0, '127.0.0.1');
  await once(echo, 'listening');
  server = { ip: '127.0.0.1', port: echo.address().port };
});

function start(options: Partial<DatagramProxyOptions> = {}, resolve = async () => WEB) {
  const answers: Answer[] = [];
  const lines: Record<string, unknown>[] = [];
  const asked: unknown[] = [];
  const note = (fields: object, message: string) => void lines.push({ ...fields, message });
  let come: Parameters<DatagramProxyOptions['sockets']['listen']>[2] = () => undefined;
  const proxy = startDatagramProxy({
    listen: [{ ip: '192.0.2.1', port: 15_053 }],
    sockets: {
      listen: (_address, _v6only, onDatagrams) => {
        come = onDatagrams;
        return { port: 15_053, close: () => undefined };
      },
      send: (from, to, data) => {
        answers.push({ from, to, text: Buffer.from(data).toString() });
        return true;
      },
    },
    client: {
      resolve: (query) => {
        asked.push(query);
        return resolve();
      },
      byAddress: () => ({ workload: undefined, reason: 'NOT_SYNCED' }),
    },
    log: { info: note, warn: note, error: note, debug: note } as unknown as DatagramProxyOptions['log'],
    ...options,
  });
  cleanup.owned(proxy);
  const send = (text: string, from = CLIENT, to = server) => come([{ from, to, data: Buffer.from(text) }]);
  return { proxy, answers, lines, asked, send };
}

test('what comes is passed on once its owner is known, and answered as if from where it was going', async () => {
  const { answers, lines, asked, send, proxy } = start();
  for (const text of ['a', 'b', 'c']) {
    send(text);
  }
  await waitFor('the answers', () => answers.length === 3);
  expect(answers.map(({ text }) => text)).toEqual(['re: a', 're: b', 're: c']);
  expect(answers[0]).toMatchObject({ from: server, to: CLIENT });
  expect(asked).toEqual([{ proto: 'udp', src: CLIENT, dst: server }]);
  expect(lines).toEqual([
    expect.objectContaining({ protocol: 'udp', resolved: true, workload: 'default/web-0', message: 'flow' }),
  ]);
  send('d');
  await waitFor('the next', () => answers.length === 4);
  expect(proxy.active()).toBe(1);
});

test('what is of nobody is refused, and asked about anew at its next datagram', async () => {
  const refuse = async () => {
    throw new ApiError('WORKLOAD_NOT_FOUND', 404, 'nobody');
  };
  const { lines, asked, send, proxy } = start({}, refuse);
  for (const count of [1, 2]) {
    send('a');
    await waitFor('it to be refused', () => lines.length === count);
    expect(proxy.active()).toBe(0);
  }
  expect(lines[0]).toMatchObject({ reason: 'WORKLOAD_NOT_FOUND', resolved: false });
  expect(asked).toHaveLength(2);
  expect(seen).toEqual([]);
  const { answers, send: sendAnyhow } = start({ allowUnidentified: true }, refuse);
  sendAnyhow('b');
  await waitFor('the answer', () => answers.length === 1);
});

test('while its owner is asked for a few wait, and no more', async () => {
  let known: (resolution: Resolution) => void = () => undefined;
  const { answers, send } = start(
    {},
    () =>
      new Promise((resolve) => {
        known = resolve;
      }),
  );
  for (let n = 0; n < 100; n++) {
    send(String(n));
  }
  known(WEB);
  await waitFor('those that waited', () => answers.length === 64);
  expect(seen).toHaveLength(64);
});

test('flows are bounded: for one more, the one on which nothing was said for longest goes', async () => {
  const { answers, send, proxy } = start({ mostFlows: 2 });
  const from = (port: number) => ({ ...CLIENT, port });
  send('a', from(1));
  send('b', from(2));
  await waitFor('both', () => answers.length === 2);
  send('a', from(1));
  await waitFor('the first again', () => answers.length === 3);
  send('c', from(3));
  await waitFor('the third', () => answers.length === 4);
  expect(proxy.active()).toBe(2);
  // An answer to the one that has gone goes nowhere; its next datagram is a flow of its own.
  send('b', from(2));
  await waitFor('the second anew', () => answers.length === 5);
  expect(answers.at(-1)?.to).toEqual(from(2));
});

test('one on which nothing is said for a while is over', async () => {
  const { answers, send, proxy } = start({ idleTimeoutMs: 1 });
  send('a');
  await waitFor('the answer', () => answers.length === 1);
  await waitFor('its end', () => proxy.active() === 0);
});

test('a datagram for the proxy itself is not passed on to it', async () => {
  const { lines, send, proxy } = start();
  send('a', CLIENT, { ip: '127.0.0.1', port: 15_053 });
  await waitFor('it to be refused', () => lines.length === 1);
  expect(lines[0]).toMatchObject({ reason: 'LOOP' });
  expect(proxy.active()).toBe(0);
});

test('what cannot be sent to its destination is refused, and says why', async () => {
  const { lines, send, proxy } = start();
  send('a', CLIENT, { ip: '255.255.255.255', port: 53 });
  const refused = () => lines.find(({ message }) => String(message).includes('not reached'));
  await waitFor('it to be refused', () => refused());
  expect(refused()).toMatchObject({ connectError: 'EACCES', workload: 'default/web-0' });
  expect(proxy.active()).toBe(0);
});

test('each answer is told of before it is sent', async () => {
  const told: string[] = [];
  const { answers, send } = start({
    onAnswer: ({ client, server: at }, answer) => {
      expect([client, at]).toEqual([CLIENT, server]);
      told.push(answer.toString());
    },
  });
  send('a');
  await waitFor('the answer', () => answers.length === 1);
  expect(told).toEqual(['re: a']);
});

test('the sockets: a datagram is told with where it was sent to, and answered from any address', async () => {
  const netns = cleanup.owned(new Netns());
  netns.exec('ip', 'link', 'set', 'lo', 'up');
  const came: { from: SocketAddress; to: SocketAddress; data: Buffer }[] = [];
  const listener = netns.run(() =>
    listenForDatagrams({ ip: '::', port: 0 }, false, (datagrams) => void came.push(...datagrams)),
  );
  cleanup.owned(listener);
  for (const [ip, type, other] of [
    ['127.0.0.1', 'udp4', '203.0.113.9'],
    ['::1', 'udp6', '2001:db8::9'],
  ] as const) {
    // A socket of Node's is made later than it is asked for, in whatever namespace the process is by then.
    const code = `
      const socket = require('dgram').createSocket('${type}');
      socket.on('message', (data, { address, port }) => {
        console.log(JSON.stringify({ length: data.length, from: { ip: address, port } }));
        socket.close();
      });
      socket.send('hello', ${listener.port}, '${ip}');`;
    const client = execFileAsync('nsenter', [`--net=${netns.path}`, process.execPath, '-e', code]);
    const before = came.length;
    const datagram = await waitFor('the datagram', () => came[before]);
    expect(datagram.data.toString()).toBe('hello');
    expect(datagram.to).toEqual({ ip, port: listener.port });
    expect(datagram.from.ip).toBe(ip);
    const sender = new DatagramSender();
    cleanup.owned(sender);
    // Longer than most links take at once; from an address that is nobody's here.
    netns.run(() => sender.send({ ip: other, port: 53 }, datagram.from, Buffer.alloc(4_000)));
    expect(JSON.parse((await client).stdout)).toEqual({ length: 4_000, from: { ip: other, port: 53 } });
  }
  expect(listener.lost).toBe(0);
  const sender = new DatagramSender();
  cleanup.owned(sender);
  const at = { ip: '127.0.0.1', port: 1 };
  expect(() => sender.send({ ip: '::1', port: 1 }, at, Buffer.alloc(1))).toThrow(
    /EAFNOSUPPORT|not supported/,
  );
  expect(() => sender.send(at, at, Buffer.alloc(70_000))).toThrow(/too long/);
  expect(() => sender.send({ ip: 'x', port: 1 }, at, Buffer.alloc(1))).toThrow('ip must be an IP address');
  expect(() => sender.send({ ...at, port: 0 }, at, Buffer.alloc(1))).toThrow('port must be');
});
