import { spawn } from 'node:child_process';
import { once } from 'node:events';
import { connect, createServer, Socket } from 'node:net';
import { setTimeout as delay, setImmediate } from 'node:timers/promises';
import { afterEach, describe, expect, test, vi } from 'vitest';
import { ApiError } from '../../src/api/client.js';
import type { Resolution } from '../../src/identity/resolve.js';
import { closeFd } from '../../src/native/descriptors.js';
import {
  pidfdGetfd,
  pidfdOpen,
  setTransparent,
  socketFrom,
  socketOwners,
  tcpListeners,
} from '../../src/native/sockets.js';
import { formatSocketAddress, type SocketAddress } from '../../src/net/socket-address.js';
import { leadsBack, plainIp } from '../../src/proxy/addresses.js';
import { type ProxyOptions, type StartedProxy, startProxy } from '../../src/proxy/proxy.js';
import { Cleanup, Netns, startProcess, temporaryFolder } from './native-lab.js';

const opened: (() => Promise<unknown> | unknown)[] = [];

afterEach(async () => {
  for (const close of opened.splice(0).reverse()) {
    await close();
  }
});

const WEB = {
  workload: { namespace: 'default', podName: 'web-0', spiffeId: 'spiffe://cluster.local/ns/default/sa/web' },
  direction: 'INGRESS',
  assurance: 'DATAPATH_RECORDED',
  source: { workload: null, reason: 'WORKLOAD_NOT_FOUND' },
} as Resolution;

type Line = Record<string, unknown> & { message: string };

interface Running {
  readonly proxy: StartedProxy;
  readonly lines: Line[];
  readonly asked: Parameters<ProxyOptions['client']['resolve']>[0][];
  dial(options?: { allowHalfOpen?: boolean }): Socket;
}

/** A proxy before `destination`; `answer` is what the agent says. */
async function run(
  destination: SocketAddress | undefined,
  options: Partial<ProxyOptions> = {},
  answer: (signal?: AbortSignal) => Promise<Resolution> = async () => WEB,
): Promise<Running> {
  const lines: Line[] = [];
  const asked: Running['asked'] = [];
  const note = (fields: object, message: string) => void lines.push({ ...fields, message });
  const proxy = await startProxy({
    listen: [{ ip: '127.0.0.1', port: 0 }],
    client: {
      resolve: (query, signal) => {
        asked.push(query);
        return answer(signal);
      },
      byAddress: (ip) => ({ workload: { ...WEB.workload, podName: `at-${ip}` }, assurance: 'IP_ONLY' }),
    },
    log: { info: note, warn: note, error: note, debug: note } as unknown as ProxyOptions['log'],
    ...(destination === undefined ? {} : { destinationOf: () => destination }),
    ...options,
  });
  opened.push(() => proxy.close());
  return {
    proxy,
    lines,
    asked,
    dial: ({ allowHalfOpen = false } = {}) => {
      const [address] = proxy.addresses;
      const socket = connect({ host: '127.0.0.1', port: address?.port ?? 0, allowHalfOpen });
      opened.push(() => socket.destroy());
      return socket;
    },
  };
}

async function serve(onConnection: (socket: Socket) => void, host = '127.0.0.1'): Promise<SocketAddress> {
  const sockets = new Set<Socket>();
  const server = createServer({ allowHalfOpen: true }, (socket) => {
    sockets.add(socket);
    socket.on('error', () => {}).once('close', () => sockets.delete(socket));
    onConnection(socket);
  });
  server.listen(0, host);
  await once(server, 'listening');
  opened.push(() => {
    for (const socket of sockets) {
      socket.destroy();
    }
    server.close();
  });
  const address = server.address();
  return { ip: host, port: typeof address === 'object' ? (address?.port ?? 0) : 0 };
}

/** An address that nobody listens at. */
async function nowhere(): Promise<SocketAddress> {
  const server = createServer().listen(0, '127.0.0.1');
  await once(server, 'listening');
  const address = server.address();
  server.close();
  return { ip: '127.0.0.1', port: typeof address === 'object' ? (address?.port ?? 0) : 0 };
}

/** A listener whose process is stopped and whose accept queue is full: the kernel drops the next SYN, listen(2). */
async function silent(): Promise<SocketAddress> {
  const code = `require('net').createServer().listen({ port: 0, host: '127.0.0.1', backlog: 1 }, function () {
    console.log(this.address().port); })`;
  const child = spawn(process.execPath, ['-e', code], { stdio: ['ignore', 'pipe', 'inherit'] });
  opened.push(() => void child.kill('SIGKILL'));
  const [line] = (await once(child.stdout, 'data')) as [Buffer];
  child.kill('SIGSTOP');
  const address = { ip: '127.0.0.1', port: Number(line.toString()) };
  for (let filled = 0; filled < 4; filled += 1) {
    const filler = connect({ host: address.ip, port: address.port }).on('error', () => {});
    opened.push(() => void filler.destroy());
    await Promise.race([once(filler, 'connect'), delay(100)]); // the last ones do not get in
  }
  return address;
}

/** By events: an async iterator would destroy the socket at its end, and with it the other direction. */
function readAll(socket: Socket): Promise<string> {
  return new Promise((resolve, reject) => {
    let text = '';
    socket.on('data', (chunk) => {
      text += String(chunk);
    });
    socket.once('end', () => resolve(text));
    socket.once('error', reject);
  });
}

/** How a connection ended without anybody asking: `ECONNRESET`, or `closed` for a clean end. */
async function ending(socket: Socket): Promise<string> {
  let code = 'closed';
  socket.on('error', (error: NodeJS.ErrnoException) => {
    code = error.code ?? 'error';
  });
  socket.resume();
  await once(socket, 'close').catch(() => undefined);
  return code;
}

const echo = (socket: Socket): void => void socket.pipe(socket);

describe('a flow', () => {
  test('is asked about, logged in one line, and passed on both ways', async () => {
    const { dial, lines, asked, proxy } = await run(await serve(echo));
    const client = dial({ allowHalfOpen: true });
    client.end('hello');
    expect(await readAll(client)).toBe('hello');
    const [destination] = asked.map(({ dst }) => dst);
    const peer = { ip: '127.0.0.1', port: client.localPort ?? asked[0]?.src.port };
    expect(asked).toEqual([{ proto: 'tcp', src: peer, dst: destination }]);
    await vi.waitFor(() => expect(proxy.active()).toBe(0));
    await vi.waitFor(() => expect(lines).toHaveLength(2));
    expect(lines).toMatchObject([
      {
        message: 'flow',
        peer: expect.stringMatching(/^127\.0\.0\.1:\d+$/),
        workload: 'default/web-0',
        spiffeId: 'spiffe://cluster.local/ns/default/sa/web',
        direction: 'INGRESS',
        assurance: 'DATAPATH_RECORDED',
        other: { workload: 'default/at-127.0.0.1', assurance: 'IP_ONLY' },
        resolved: true,
      },
      { message: 'flow ended', bytesOut: 5, bytesIn: 5 },
    ]);
  });

  test('out of a pod is logged with who is at its destination, or why nobody is named', async () => {
    const destination = await serve(echo, '127.0.0.2');
    const answer = async () => ({ ...WEB, direction: 'EGRESS' }) as Resolution;
    const known = await run(destination, {}, answer);
    known.dial({ allowHalfOpen: true }).end();
    await vi.waitFor(() =>
      expect(known.lines[0]).toMatchObject({ message: 'flow', other: { workload: 'default/at-127.0.0.2' } }),
    );
    const resolve = answer;
    const byAddress = () => ({ workload: undefined, reason: 'NOT_SYNCED' }) as const;
    const unknown = await run(destination, { client: { resolve, byAddress } });
    unknown.dial({ allowHalfOpen: true }).end();
    await vi.waitFor(() =>
      expect(unknown.lines[0]).toMatchObject({ resolved: true, other: { reason: 'NOT_SYNCED' } }),
    );
  });

  test('keeps the other direction open when one side has said all', async () => {
    const { dial } = await run(
      await serve((socket) => {
        void readAll(socket).then((text) => socket.end(`${text} and the answer`));
      }),
    );
    const client = dial({ allowHalfOpen: true });
    client.end('the question');
    expect(await readAll(client)).toBe('the question and the answer');
  });

  test('does not fill memory when the client reads slowly', async () => {
    let upstream: Socket | undefined;
    const chunk = Buffer.alloc(1 << 20);
    const limit = 64;
    let written = 0;
    const { dial } = await run(
      await serve((socket) => {
        upstream = socket;
        const more = (): void => {
          while (written < limit) {
            written += 1;
            if (!socket.write(chunk)) {
              socket.once('drain', more);
              return;
            }
          }
          socket.end();
        };
        more();
      }),
    );
    const client = dial({ allowHalfOpen: true });
    client.pause();
    let before = -1;
    await vi.waitFor(
      () => {
        const now = written;
        const still = now > 0 && now === before;
        before = now;
        expect(still).toBe(true);
      },
      { interval: 100 },
    );
    expect(written).toBeLessThan(limit);
    let received = 0;
    client.on('data', (part: Buffer) => {
      received += part.length;
    });
    client.resume();
    await once(client, 'end');
    expect(received).toBe(limit * chunk.length);
    client.end();
    if (upstream !== undefined && !upstream.closed) {
      await once(upstream, 'close');
    }
  });

  test('ends with a reset when the destination resets it', async () => {
    const { dial, proxy } = await run(
      await serve((socket) => void socket.once('data', () => socket.resetAndDestroy())),
    );
    const client = dial();
    client.write('x');
    expect(await ending(client)).toBe('ECONNRESET');
    await vi.waitFor(() => expect(proxy.active()).toBe(0));
  });

  test('ends with a reset at the destination when the client resets it', async () => {
    let seen: Promise<string> | undefined;
    const { dial } = await run(
      await serve((socket) => {
        seen = ending(socket);
        socket.write('x');
      }),
    );
    const client = dial();
    await once(client, 'data');
    client.resetAndDestroy();
    expect(await seen).toBe('ECONNRESET');
  });

  test('on which nothing is said is reset after the idle time', async () => {
    const { dial, proxy } = await run(await serve(() => {}), { idleTimeoutMs: 50 });
    expect(await ending(dial())).toBe('ECONNRESET');
    await vi.waitFor(() => expect(proxy.active()).toBe(0));
  });
});

describe('a flow that is refused', () => {
  test('because nobody knows whose it is does not get a byte through', async () => {
    let heard = '';
    let closedUpstream = 0;
    let reached = 0;
    const destination = await serve((socket) => {
      reached += 1;
      socket.on('data', (chunk) => {
        heard += String(chunk);
      });
      socket.once('close', () => {
        closedUpstream += 1;
      });
    });
    const { dial, lines } = await run(destination, {}, async () => {
      throw new ApiError('WORKLOAD_NOT_FOUND', 404, 'nobody');
    });
    const client = dial();
    client.write('secret');
    expect(await ending(client)).toBe('ECONNRESET');
    expect(lines).toMatchObject([{ reason: 'WORKLOAD_NOT_FOUND' }]);
    await vi.waitFor(() => expect(closedUpstream).toBe(reached));
    expect(heard).toBe('');
  });

  test('is passed on all the same where that is allowed', async () => {
    const { dial, lines } = await run(await serve(echo), { allowUnidentified: true }, async () => {
      throw new ApiError('WORKLOAD_NOT_FOUND', 404, 'nobody');
    });
    const client = dial({ allowHalfOpen: true });
    client.end('hello');
    expect(await readAll(client)).toBe('hello');
    expect(lines[0]).toMatchObject({ message: 'flow', reason: 'WORKLOAD_NOT_FOUND', resolved: false });
  });

  describe.each([
    ["the node's address", {}],
    ["the client's address", { socketFrom }],
  ])('from %s', (_from, options) => {
    test('because its destination cannot be reached is reset, not ended', async () => {
      const { dial, lines } = await run(await nowhere(), options);
      expect(await ending(dial())).toBe('ECONNRESET');
      expect(lines).toMatchObject([{ workload: 'default/web-0', connectError: 'ECONNREFUSED' }]);
    });

    test('because its destination does not answer in time is reset', async () => {
      const { lines, dial } = await run(await silent(), { ...options, connectTimeoutMs: 50 });
      expect(await ending(dial())).toBe('ECONNRESET');
      expect(lines).toMatchObject([{ connectError: 'ETIMEDOUT' }]);
    });
  });

  test('because nothing can be sent from its address is reset', async () => {
    const { dial, lines } = await run(await nowhere(), { socketFrom: () => socketFrom('fe80::1') });
    expect(await ending(dial())).toBe('ECONNRESET');
    expect(lines).toMatchObject([{ connectError: 'EINVAL' }]);
  });

  test('because it would lead back to the proxy is reset, whichever local address it names', async () => {
    const { proxy, lines, asked } = await run(undefined, { listen: [{ ip: '::', port: 0 }] });
    const port = proxy.addresses[0]?.port ?? 0;
    for (const host of ['127.0.0.1', '127.9.9.9', '::1']) {
      expect(await ending(connect({ host, port }))).toBe('ECONNRESET');
    }
    expect(asked).toEqual([]);
    expect(lines.map(({ reason, originalDst }) => [reason, originalDst])).toEqual([
      ['LOOP', `127.0.0.1:${port}`],
      ['LOOP', `127.9.9.9:${port}`],
      ['LOOP', `[::1]:${port}`],
    ]);
  });

  test('because it would lead to another listener of the proxy is reset', async () => {
    const inbound = await nowhere();
    const { dial, lines } = await run(inbound, { listen: [{ ip: '127.0.0.1', port: 0 }, inbound] });
    expect(await ending(dial())).toBe('ECONNRESET');
    expect(lines).toMatchObject([{ reason: 'LOOP', originalDst: formatSocketAddress(inbound) }]);
  });
});

describe('the command, between a pod of this node and a client elsewhere', () => {
  const PORT = 8_080;
  /** Answers, once it has heard all, with what it has heard and from whom. */
  const SERVER = `
const server = require('node:net').createServer({ allowHalfOpen: true }, (socket) => {
  let text = '';
  socket.on('data', (chunk) => { text += chunk; });
  socket.on('end', () => socket.end(socket.remoteAddress + ' said ' + text));
});
server.listen(${PORT}, process.argv[1], () => console.log(1));
`;

  const inside = (cleanup: Cleanup, { path }: Netns, ...command: string[]) =>
    startProcess(cleanup, 'nsenter', `--net=${path}`, process.execPath, ...command);

  /** Address 2 of a network of its own, of which the node has address 1; what comes from there the node takes for its own. */
  function machineAt(
    cleanup: Cleanup,
    node: Netns,
    device: string,
    family: '-4' | '-6',
    network: string,
  ): Netns {
    const machine = cleanup.owned(new Netns());
    node.ip(`link add name ${device} type veth peer name eth0 netns ${machine.name}`);
    for (const [side, link, address] of [
      [node, device, `${network}1`],
      [machine, 'eth0', `${network}2`],
    ] as const) {
      const length = family === '-4' ? '24' : '64 nodad';
      side.ip(`${family} address add ${address}/${length} dev ${link}`);
      side.ip(`link set ${link} up`);
    }
    machine.ip(`${family} route add default via ${network}1`);
    node.ip(`${family} rule add iif ${device} lookup 100`);
    return machine;
  }

  /** As the agent does. */
  async function makeListenersTransparent(cleanup: Cleanup, node: Netns): Promise<void> {
    for (const { pid, fd } of await socketOwners(node.run(tcpListeners).map(({ inode }) => inode))) {
      const pidfd = cleanup.add(pidfdOpen(pid), closeFd);
      setTransparent(cleanup.add(pidfdGetfd(pidfd, fd), closeFd));
    }
  }

  describe.each([
    ['IPv4', '-4', '10.66.1.', '10.66.2.', '--inbound', '0.0.0.0'],
    ['IPv6', '-6', 'fd66:1::', 'fd66:2::', '--inbound6', '[::]'],
  ] as const)('over %s', (_name, family, clients, pods, option, wildcard) => {
    test.each([
      ["the client's own address with --keep-source", ['--keep-source'], `${clients}2`],
      ["the node's without", [], `${pods}1`],
    ])('shows the pod %s', async (_what, keepSource, seen) => {
      const cleanup = new Cleanup();
      opened.push(() => cleanup.run());
      const node = cleanup.owned(new Netns());
      const client = machineAt(cleanup, node, 'clients', family, clients);
      const pod = machineAt(cleanup, node, 'pods', family, pods);
      node.ip(`${family} route add local default dev lo table 100`);
      await inside(cleanup, pod, '-e', SERVER, `${pods}2`);
      const command = ['bin/nodesentry', '--run-dir', temporaryFolder(cleanup), 'proxy', ...keepSource];
      const patience = ['--allow-unidentified', '--resolve-timeout-ms', '1'];
      await inside(cleanup, node, ...command, ...patience, option, `${wildcard}:${PORT}`);
      expect(node.run(tcpListeners).map(({ port }) => port)).toEqual([PORT]); // and not the default one
      await makeListenersTransparent(cleanup, node);

      const socket = new Socket({ fd: client.run(() => socketFrom(`${clients}2`)), allowHalfOpen: true });
      opened.push(() => socket.destroy());
      socket.connect({ host: `${pods}2`, port: PORT }).end('hello');
      expect(await readAll(socket)).toBe(`${seen} said hello`);
    });
  });
});

describe('while the agent is away', () => {
  test('a flow waits for it to come back', async () => {
    let calls = 0;
    const { dial, asked } = await run(await serve(echo), {}, async () => {
      calls += 1;
      if (calls < 3) {
        throw new ApiError('NO_AGENT', undefined, 'no agent');
      }
      return WEB;
    });
    const client = dial({ allowHalfOpen: true });
    client.end('hello');
    expect(await readAll(client)).toBe('hello');
    expect(asked).toHaveLength(3);
  });

  test('a flow is reset when it does not come back in time', async () => {
    const { dial, lines } = await run(await serve(echo), { resolveTimeoutMs: 120 }, async () => {
      throw new ApiError('NO_AGENT', undefined, 'no agent');
    });
    expect(await ending(dial())).toBe('ECONNRESET');
    expect(lines).toMatchObject([{ reason: 'NO_AGENT' }]);
  });
});

test('thousands of short connections leave nothing behind', async () => {
  const { proxy, dial, lines } = await run(await serve(echo));
  const sockets = () =>
    process.getActiveResourcesInfo().filter((kind) => kind.startsWith('TCPSocket')).length;
  const before = sockets();
  const total = 2_000;
  let started = 0;
  const worker = async (): Promise<void> => {
    while (started < total) {
      started += 1;
      const client = dial({ allowHalfOpen: true });
      client.end('hello');
      expect(await readAll(client)).toBe('hello');
    }
  };
  await Promise.all(Array.from({ length: 100 }, worker));
  await vi.waitFor(() => expect(proxy.active()).toBe(0));
  await vi.waitFor(() => expect(sockets()).toBeLessThanOrEqual(before));
  expect(lines.filter(({ message }) => message === 'flow')).toHaveLength(total);
});

test('closing resets the flows that are open and frees the port', async () => {
  const { proxy, dial } = await run(await serve(echo));
  const client = dial();
  client.write('x');
  await once(client, 'data');
  const ended = ending(client);
  await proxy.close();
  expect(await ended).toBe('ECONNRESET');
  await setImmediate();
  expect(proxy.active()).toBe(0);
  const again = createServer().listen(proxy.addresses[0]?.port, '127.0.0.1');
  await once(again, 'listening');
  again.close();
});

test('an address in use is refused, and nothing stays open', async () => {
  const taken = await serve(echo);
  await expect(run(undefined, { listen: [{ ip: '127.0.0.1', port: 0 }, taken] })).rejects.toMatchObject({
    code: 'EADDRINUSE',
  });
});

test('IPv4 and IPv6 can be listened at on one port', async () => {
  const free = await nowhere();
  const { proxy } = await run(undefined, {
    listen: [
      { ip: '0.0.0.0', port: free.port },
      { ip: '::', port: free.port },
    ],
  });
  expect(proxy.addresses).toHaveLength(2);
});

test('addresses of a dual-stack socket, and ones that lead back', () => {
  expect(plainIp('::ffff:10.0.0.1')).toBe('10.0.0.1');
  expect(leadsBack({ ip: '127.0.0.1', port: 2 }, [{ ip: '127.0.0.1', port: 1 }])).toBe(false);
  expect(leadsBack({ ip: '192.0.2.1', port: 1 }, [{ ip: '127.0.0.1', port: 1 }])).toBe(false);
});
