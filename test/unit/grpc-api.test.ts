import { execFile } from 'node:child_process';
import { once } from 'node:events';
import { existsSync, statSync } from 'node:fs';
import { connect } from 'node:net';
import { promisify } from 'node:util';
import { type Client, type ClientReadableStream, type ServiceError, status } from '@grpc/grpc-js';
import { type EnumTypeDefinition, loadSync } from '@grpc/proto-loader';
import { afterEach, describe, expect, test, vi } from 'vitest';
import { startGrpcApi } from '../../src/api/grpc.js';
import { type IdentityReason, STATUS_OF_REASON } from '../../src/identity/errors.js';
import { peerCredentials } from '../../src/native/sockets.js';
import { endpoint, flowRecord, pod, uid } from './api-fixture.js';

import {
  type Answer,
  afterwards,
  ask,
  clientOf,
  closeAll,
  FLOW,
  IDENTITY,
  identityClient,
  OPTIONS,
  refusal,
  start,
} from './grpc-fixture.js';
import { ownNamespace } from './own-namespace.js';

afterEach(closeAll);

describe('Resolve', () => {
  test('names the pod of a flow, field for field as over HTTP', async () => {
    const { api, metrics } = await start();
    const { resolution } = await ask(identityClient(api.path), 'Resolve', { flow: FLOW });
    expect(resolution).toEqual({
      workload: {
        uid: 'uid-web-0',
        generation: 3,
        spiffeId: 'spiffe://cluster.local/ns/default/sa/web',
        namespace: 'default',
        podName: 'web-0',
        podUid: 'uid-web-0',
        serviceAccount: 'web',
        app: 'web',
        runtime: 'runsc',
        runtimeHandler: 'gvisor',
        sandboxId: 'sandbox',
        ips: ['10.66.0.3'],
        labels: { app: 'web', 'nodesentry.io/intercept': 'enabled' },
        node: 'node-a',
        state: 'WORKLOAD_STATE_LIVE',
      },
      direction: 'DIRECTION_EGRESS',
      mode: 'INTERCEPTED',
      original: { src: FLOW.src, dst: FLOW.dst },
      instance: 'default',
      assurance: 'ASSURANCE_DATAPATH_RECORDED',
      epoch: 'epoch-1',
      revision: 1,
      ttlMs: 1000,
      source: {
        workload: expect.objectContaining({ podName: 'web-0' }),
        assurance: 'ASSURANCE_DATAPATH_RECORDED',
        reason: 'REASON_UNSPECIFIED',
      },
      destination: {
        workload: null,
        assurance: 'ASSURANCE_UNSPECIFIED',
        reason: 'REASON_WORKLOAD_NOT_FOUND',
      },
      past: null,
    });
    expect(await metrics.text()).toContain('nodesentry_resolves_total{result="DATAPATH_RECORDED"} 1');
  });

  test('understands IPv6, and says of a flow to a pod that it came in', async () => {
    const { api, datapath } = await start();
    const src = { ip: 'fd00::9', port: 1 };
    const dst = { ip: 'fd00:66::3', port: 80 };
    datapath.flows.push(flowRecord(src, dst, { direction: 'INGRESS' }));
    const flow = { proto: 'tcp', src: '[fd00::9]:1', dst: '[fd00:66::3]:80' };
    expect(await ask(identityClient(api.path), 'Resolve', { flow })).toMatchObject({
      resolution: {
        direction: 'DIRECTION_INGRESS',
        workload: { podName: 'web-0' },
        original: { src: flow.src },
      },
    });
  });

  test('names a pod by its UID, also after it went', async () => {
    const { api, store } = await start();
    const client = identityClient(api.path);
    const byUid = { podUid: 'uid-web-0' };
    expect(await ask(client, 'Resolve', byUid)).toMatchObject({
      resolution: {
        workload: { podName: 'web-0', generation: 3, state: 'WORKLOAD_STATE_LIVE' },
        instance: 'default',
        direction: 'DIRECTION_UNSPECIFIED',
        assurance: 'ASSURANCE_UNSPECIFIED',
        original: null,
        source: null,
        epoch: 'epoch-1',
        ttlMs: 1000,
      },
    });
    store.replaceSource('static', []);
    expect(await ask(client, 'Resolve', byUid)).toMatchObject({
      resolution: { workload: { podName: 'web-0', state: 'WORKLOAD_STATE_TERMINATING' } },
    });
    expect(await refusal(ask(client, 'Resolve', { podUid: 'nobody' }))).toMatchObject({
      code: status.NOT_FOUND,
      reason: 'WORKLOAD_NOT_FOUND',
    });
  });

  test('names a pod by its address, the name of its interface and a process in its namespace', async () => {
    const { api, store, datapath, metrics } = await start();
    const other = await ownNamespace();
    afterwards(other.end);
    datapath.statuses.push(
      endpoint(uid('uid-other'), {
        endpointId: 2,
        interfaces: [{ name: 'veth1', ifindex: 8, topology: 'routed', podInterface: 'eth0' }],
      }),
    );
    store.replaceSource('static', [pod('web-0'), pod('other', { ips: ['fd00:66::4'], netns: other.path })]);
    const client = identityClient(api.path);
    const byAddress = { address: 'fd00:66::4', minAssurance: 'ASSURANCE_IP_ONLY' };
    expect(await ask(client, 'Resolve', byAddress)).toMatchObject({
      resolution: { workload: { podName: 'other' }, assurance: 'ASSURANCE_IP_ONLY', original: null },
    });
    for (const request of [{ hostInterface: 'veth1' }, { process: other.process }]) {
      expect(await ask(client, 'Resolve', request)).toMatchObject({
        resolution: {
          workload: { podName: 'other', generation: 3 },
          instance: 'default',
          assurance: 'ASSURANCE_UNSPECIFIED',
          direction: 'DIRECTION_UNSPECIFIED',
          original: null,
          source: null,
        },
      });
    }
    expect(await metrics.text()).toContain('nodesentry_resolves_total{result="POD"} 2');
    const late = { pid: other.process.pid, startTime: other.process.startTime + 1 };
    expect(await refusal(ask(client, 'Resolve', { process: late }))).toMatchObject({
      code: status.NOT_FOUND,
      reason: 'WORKLOAD_NOT_FOUND',
    });
    expect(await refusal(ask(client, 'Resolve', { address: 'fd00:66::4' }))).toMatchObject({
      reason: 'ASSURANCE_TOO_LOW',
    });
  });

  test('waits for a revision that a caller has seen, and no longer than it wants to', async () => {
    const { api, store } = await start();
    const client = identityClient(api.path);
    const ofOther = (revision: number, waitMs: number, epoch = 'epoch-1') =>
      ask(client, 'Resolve', { podUid: 'uid-other', minRevision: { epoch, revision }, waitMs });
    const waiting = ofOther(2, 5_000);
    const batched = ask(client, 'BatchResolve', {
      requests: [{ podUid: 'uid-other', minRevision: { epoch: 'epoch-1', revision: 2 }, waitMs: 5_000 }],
    });
    expect(await refusal(ofOther(1, 0))).toMatchObject({ reason: 'WORKLOAD_NOT_FOUND' });
    store.replaceSource('static', [pod('web-0'), pod('other', { ips: ['10.66.0.4'] })]);
    expect(await waiting).toMatchObject({ resolution: { workload: { podName: 'other' }, revision: 2 } });
    expect(await batched).toMatchObject({ results: [{ resolution: { workload: { podName: 'other' } } }] });
    expect(await refusal(ofOther(3, 20))).toMatchObject({
      code: status.UNAVAILABLE,
      reason: 'NOT_SYNCED',
      details: 'revision 3 is not reached yet, 2 is, after 20 ms',
    });
    expect(await refusal(ofOther(1, 5_000, 'epoch-0'))).toMatchObject({ reason: 'NOT_SYNCED' });
  });

  test('says who had an address at a time', async () => {
    const { api, store, state } = await start();
    const client = identityClient(api.path);
    const from = state.nowMs;
    store.replaceSource('static', [pod('other', { ips: ['10.66.0.4'] })]);
    state.nowMs += 1_000;
    store.replaceSource('static', []);
    const until = state.nowMs;
    state.nowMs += 1_000;
    const weak = { minAssurance: 'ASSURANCE_IP_ONLY', atMs: from + 500 };
    const flow = { proto: 'tcp', src: '10.66.0.4:1', dst: '10.0.0.1:80' };
    expect(await ask(client, 'Resolve', { address: '10.66.0.4', ...weak })).toMatchObject({
      resolution: {
        workload: { podName: 'other', state: 'WORKLOAD_STATE_TERMINATING' },
        past: { at: from + 500, from, until },
        direction: 'DIRECTION_UNSPECIFIED',
        assurance: 'ASSURANCE_IP_ONLY',
      },
    });
    expect(await ask(client, 'Resolve', { flow, ...weak })).toMatchObject({
      resolution: { direction: 'DIRECTION_EGRESS', original: { src: flow.src }, past: { from } },
    });
    expect(await refusal(ask(client, 'Resolve', { flow, atMs: until + 500 }))).toMatchObject({
      reason: 'WORKLOAD_NOT_FOUND',
    });
  });

  test.each([
    [{}, 'key: expected one of the keys, got nothing'],
    [{ flow: { ...FLOW, proto: 'sctp' } }, 'flow.proto: expected tcp or udp, got "sctp"'],
    [{ flow: { proto: 'tcp', dst: FLOW.dst } }, 'flow.src: expected an address and port'],
    [{ flow: { ...FLOW, dst: '10.0.0.1:65536' } }, 'flow.dst: expected an address and port'],
    [{ flow: { ...FLOW, dst: 'ä'.repeat(500) } }, 'flow.dst: expected an address and port'],
    [{ flow: { ...FLOW, src: 'ä' } }, 'got "ä"'],
    [{ flow: FLOW, minAssurance: 7 }, 'min_assurance: expected one of ASSURANCE_IP_ONLY, '],
    [{ podUid: '' }, 'pod_uid: expected 1 to 253 characters, got 0'],
    [{ podUid: 'x'.repeat(254) }, 'pod_uid: expected 1 to 253 characters, got 254'],
    [
      { podUid: 'uid-web-0', minAssurance: 'ASSURANCE_IP_ONLY' },
      'min_assurance: only a flow or an address has',
    ],
    [{ socketCookie: 0 }, 'socket_cookie: expected what SO_COOKIE of an accepted socket is, got "0"'],
    [{ netnsCookie: 0 }, 'netns_cookie: expected what SO_NETNS_COOKIE of a socket is, got "0"'],
    [{ hostInterface: 'eth0/../x' }, 'host_interface: expected the name of a network interface'],
    [{ hostInterface: '' }, 'host_interface: expected the name of a network interface'],
    [{ process: { startTime: 1 } }, 'process.pid: expected the number of a process, got 0'],
    [{ process: { pid: 1 } }, 'process.start_time: expected when the process started'],
    [{ process: { pid: 1, startTime: 2 }, minAssurance: 'ASSURANCE_IP_ONLY' }, 'min_assurance: only a flow'],
    [{ address: 'web-0' }, 'address: expected an address such as 10.66.0.3'],
    [{ flow: FLOW, minRevision: { revision: 1 } }, 'min_revision.epoch: expected the epoch'],
    [
      { flow: FLOW, minRevision: { epoch: 'e' }, waitMs: 5_001 },
      'wait_ms: expected milliseconds, at most 5000',
    ],
    [{ flow: FLOW, waitMs: 1 }, 'wait_ms: for which min_revision?'],
    [{ flow: FLOW, minRevision: { epoch: 'e' }, atMs: 1 }, 'min_revision: not with at_ms'],
    [{ podUid: 'uid-web-0', atMs: 1 }, 'at_ms: only of a flow or an address'],
    [{ flow: FLOW, atMs: 2_000_000_000_000 }, 'at: 2033-05-18T03:33:20.000Z is yet to come'],
  ])('a malformed request is told which key is wrong (%#)', async (request, details) => {
    const { api } = await start();
    const refused = await refusal(ask(identityClient(api.path), 'Resolve', request));
    expect(refused).toMatchObject({ code: status.INVALID_ARGUMENT, statusCode: 3, reason: 'KEY_INVALID' });
    expect(refused.details).toContain(details);
  });

  test('refuses with the status of the reason', async () => {
    const { api, state, store, metrics } = await start();
    const client = identityClient(api.path);
    const unknown = { flow: { ...FLOW, src: '10.9.9.9:1' } };
    const weak = { flow: { ...FLOW, src: '10.66.0.3:1' } };
    const expectRefused = async (request: object, code: status, reason: IdentityReason) =>
      expect(await refusal(ask(client, 'Resolve', request))).toMatchObject({ code, reason });
    await expectRefused(unknown, status.NOT_FOUND, 'WORKLOAD_NOT_FOUND');
    state.synced = false;
    await expectRefused(unknown, status.UNAVAILABLE, 'NOT_SYNCED');
    store.replaceSource('static', [pod('web-0'), pod('web-1')]);
    await expectRefused(weak, status.FAILED_PRECONDITION, 'AMBIGUOUS');
    store.replaceSource('static', [pod('web-0', { serviceAccount: '' })]);
    await expectRefused(weak, status.FAILED_PRECONDITION, 'WORKLOAD_UNCONFIRMED');
    store.replaceSource('static', [pod('web-0')]);
    await expectRefused(weak, status.FAILED_PRECONDITION, 'ASSURANCE_TOO_LOW');
    await expectRefused(
      { ...weak, minAssurance: 'ASSURANCE_IP_AND_IFACE' },
      status.FAILED_PRECONDITION,
      'ASSURANCE_TOO_LOW',
    );
    expect(await ask(client, 'Resolve', { ...weak, minAssurance: 'ASSURANCE_IP_ONLY' })).toMatchObject({
      resolution: { assurance: 'ASSURANCE_IP_ONLY' },
    });
    expect(await metrics.text()).toContain('nodesentry_resolves_total{result="ASSURANCE_TOO_LOW"} 2');
  });

  test('an error of ours gives nothing away, and is logged', async () => {
    const { api, datapath, logged } = await start();
    datapath.lookupFlow = () => {
      throw new Error('secret');
    };
    const refused = await refusal(ask(identityClient(api.path), 'Resolve', { flow: FLOW }));
    expect(refused).toMatchObject({ code: status.INTERNAL, reason: 'INTERNAL' });
    expect(refused.details).not.toContain('secret');
    expect(logged).toMatchObject([{ rpc: `/${IDENTITY}/Resolve`, err: { message: 'secret' } }]);
  });
});

describe('BatchResolve', () => {
  test('answers each request for itself, in order', async () => {
    const { api } = await start();
    const requests = [
      { flow: { ...FLOW, src: '10.9.9.9:1' } },
      { flow: FLOW },
      { podUid: 'uid-web-0' },
      { flow: { ...FLOW, src: 'x' } },
      { flow: { ...FLOW, src: '10.66.0.3:1' } },
      { flow: { ...FLOW, src: '10.66.0.3:1' }, minAssurance: 'ASSURANCE_IP_ONLY' },
      {},
    ];
    const { results } = await ask(identityClient(api.path), 'BatchResolve', { requests });
    expect(results).toMatchObject([
      {
        result: 'problem',
        problem: {
          type: 'urn:nodesentry:problem:WORKLOAD_NOT_FOUND',
          title: 'No pod of this node is known for this',
          status: 404,
          reason: 'REASON_WORKLOAD_NOT_FOUND',
        },
      },
      { result: 'resolution', resolution: { workload: { podName: 'web-0' } } },
      { resolution: { workload: { podName: 'web-0' } } },
      { problem: { reason: 'REASON_KEY_INVALID', detail: expect.stringContaining('requests[3].flow.src:') } },
      { problem: { reason: 'REASON_ASSURANCE_TOO_LOW', status: 412 } },
      { resolution: { assurance: 'ASSURANCE_IP_ONLY' } },
      { problem: { reason: 'REASON_KEY_INVALID', detail: expect.stringContaining('requests[6].key:') } },
    ]);
  });

  test('takes 256 requests and no more, and no message without end', async () => {
    const { api } = await start();
    const client = identityClient(api.path);
    const many = (length: number) => ({ requests: Array.from({ length }, () => ({ flow: FLOW })) });
    expect((await ask(client, 'BatchResolve', many(256))).results).toHaveLength(256);
    expect(await refusal(ask(client, 'BatchResolve', many(257)))).toMatchObject({
      code: status.INVALID_ARGUMENT,
      reason: 'KEY_INVALID',
      details: 'requests: expected a list of at most 256 requests, got 257',
    });
    const huge = { requests: [{ podUid: 'x'.repeat(200_000) }] };
    expect(await refusal(ask(client, 'BatchResolve', huge))).toMatchObject({
      code: status.RESOURCE_EXHAUSTED,
    });
  });
});

describe('the rest of the service', () => {
  test('GetStatus tells what HTTP tells', async () => {
    const { api, state, datapath } = await start();
    state.blockers = ['source static has not synced'];
    datapath.late = 4;
    datapath.off = [{ family: 6, reason: 'no IPv6', everywhere: true, unknown: false }];
    datapath.packets = [
      {
        podUid: 'uid-web-0' as never,
        endpointId: 1,
        generation: 3,
        direction: 'EGRESS',
        packets: { PASSED: 5 },
      },
    ] as never;
    datapath.listening = [
      {
        instance: 'default',
        direction: 'outbound',
        family: 4,
        address: '127.0.0.1:15001',
        adopted: true,
        pid: 7,
        process: 'envoy',
        sockets: { all: 2, transparent: 1 },
      },
    ];
    expect(await ask(identityClient(api.path), 'GetStatus', {})).toMatchObject({
      version: '1.2.3',
      node: 'node-a',
      pid: process.pid,
      epoch: 'epoch-1',
      revision: 1,
      ready: false,
      blockers: ['source static has not synced'],
      sources: [{ name: 'static', synced: true, lastError: '' }],
      familiesOff: [{ family: 6, reason: 'no IPv6' }],
      listeners: [
        {
          instance: 'default',
          direction: 'outbound',
          family: 4,
          adopted: true,
          process: 'envoy',
          sockets: { all: 2, transparent: 1 },
          failure: 'closed',
        },
      ],
      endpoints: { INTERCEPTED: 1, PENDING: 0 },
      repairs: { attachment: 3 },
      podsLate: 4,
      packets: { PASSED: 5 },
      eventsLost: { kernel: 2, agent: 1 },
    });
  });

  test('health is that of the agent, for those who ask and those who watch', async () => {
    const { api, state } = await start();
    state.blockers = ['source static has not synced'];
    const client = clientOf(api.path, 'grpc.health.v1.Health', 'grpc/health/v1/health.proto');
    const seen: unknown[] = [];
    const watch = client.Watch?.({ service: IDENTITY }) as ClientReadableStream<{ status: string }>;
    afterwards(() => watch.cancel());
    watch.on('data', (answer: { status: string }) => seen.push(answer.status));
    watch.on('error', () => undefined);
    for (const service of ['', IDENTITY]) {
      expect(await ask(client, 'Check', { service })).toEqual({ status: 'NOT_SERVING' });
    }
    await vi.waitFor(() => expect(seen).toEqual(['NOT_SERVING']));
    state.blockers = [];
    expect(await ask(client, 'Check', {})).toEqual({ status: 'SERVING' });
    expect(await ask(client, 'List', {})).toMatchObject({ statuses: { [IDENTITY]: { status: 'SERVING' } } });
    await vi.waitFor(() => expect(seen).toEqual(['NOT_SERVING', 'SERVING']));
    expect(await refusal(ask(client, 'Check', { service: 'other' }))).toMatchObject({
      code: status.NOT_FOUND,
    });
  });
});

describe('reflection', () => {
  const reflect = async (path: string, requests: object[]) => {
    const folder = 'node_modules/@grpc/reflection/build/proto';
    const client = clientOf(
      path,
      'grpc.reflection.v1.ServerReflection',
      'grpc/reflection/v1/reflection.proto',
      [folder],
    );
    const call = client.ServerReflectionInfo?.() as ReturnType<Client['makeBidiStreamRequest']>;
    const answers: Answer[] = [];
    call.on('data', (answer: Answer) => answers.push(answer));
    for (const request of requests) {
      call.write(request);
    }
    call.end();
    await once(call, 'end');
    return answers;
  };

  test('lists the services', async () => {
    const { api } = await start();
    const [answer] = await reflect(api.path, [{ listServices: '*' }]);
    expect(answer?.listServicesResponse).toEqual({
      service: [{ name: 'grpc.health.v1.Health' }, { name: IDENTITY }],
    });
  });

  test('hands out the file of a symbol', async () => {
    const { api } = await start();
    const answers = await reflect(api.path, [
      { fileContainingSymbol: IDENTITY },
      { fileContainingSymbol: 'nodesentry.identity.v1.Workload' },
      { fileContainingSymbol: 'nodesentry.identity.v1.Nothing' },
    ]);
    const files = answers.map(
      ({ fileDescriptorResponse }) =>
        (fileDescriptorResponse as { fileDescriptorProto: Buffer[] } | null)?.fileDescriptorProto,
    );
    expect(files[0]?.[0]?.toString('latin1')).toContain('BatchResolveRequest');
    expect(files[1]).toEqual(files[0]);
    expect(answers[2]).toMatchObject({ errorResponse: { errorCode: status.NOT_FOUND } });
  });
});

test('a client that knows nothing but the socket can ask', async () => {
  const { api } = await start();
  const curl = async (...args: string[]) =>
    JSON.parse(
      (
        await promisify(execFile)('node_modules/.bin/buf', [
          ...['curl', '--protocol', 'grpc', '--http2-prior-knowledge', '--unix-socket', api.path],
          ...args,
        ])
      ).stdout,
    );
  const data = JSON.stringify({ flow: FLOW });
  expect(await curl('--data', data, `http://localhost/${IDENTITY}/Resolve`)).toMatchObject({
    resolution: {
      workload: { spiffeId: 'spiffe://cluster.local/ns/default/sa/web', labels: { app: 'web' } },
      assurance: 'ASSURANCE_DATAPATH_RECORDED',
    },
  });
  expect(await curl('--data', '{}', 'http://localhost/grpc.health.v1.Health/Check')).toEqual({
    status: 'SERVING',
  });
});

describe('who may ask', () => {
  test('a caller that is not allowed is refused whatever it calls, and logged once', async () => {
    const { api, logged } = await start({
      api: '{allow: [{uid: 4711}]}',
      credentials: (fd) => ({ ...peerCredentials(fd), uid: 65_534 }),
    });
    const details = `uid 65534, gid ${process.getgid?.()} (pid ${process.pid}) is not in api.allow of the configuration`;
    const client = identityClient(api.path);
    for (const method of ['Resolve', 'BatchResolve', 'GetStatus']) {
      expect(await refusal(ask(client, method, {}))).toEqual({
        code: status.PERMISSION_DENIED,
        details,
        reason: 'CALLER_NOT_ALLOWED',
        statusCode: status.PERMISSION_DENIED,
      });
    }
    const health = clientOf(api.path, 'grpc.health.v1.Health', 'grpc/health/v1/health.proto');
    expect(await refusal(ask(health, 'Check', {}))).toMatchObject({ code: status.PERMISSION_DENIED });
    expect(logged).toHaveLength(1);
  });

  test('where the kernel does not say who it is, nobody is answered', async () => {
    const { api, logged } = await start({
      credentials: () => {
        throw new Error('no SO_PEERCRED');
      },
    });
    expect(await refusal(ask(identityClient(api.path), 'GetStatus', {}))).toMatchObject({
      code: status.INTERNAL,
      reason: 'INTERNAL',
    });
    expect(logged).toMatchObject([{ err: { message: 'no SO_PEERCRED' } }]);
  });

  test('the socket opens to those who may ask', async () => {
    const root = await start();
    expect(statSync(root.api.path).mode & 0o777).toBe(0o600);
    const other = await start({ api: '{allow: [{uid: 0}, {uid: 4711}]}' });
    expect(statSync(other.api.path).mode & 0o777).toBe(0o666);
  });
});

describe('the socket', () => {
  test.each([
    ['allowed', '{allow: [{uid: 0}]}'],
    ['refused', '{allow: [{uid: 4711}]}'],
  ])('survives what is not HTTP/2, from a caller that is %s', async (who, access) => {
    const { api } = await start({ api: access });
    for (const bytes of [
      'GET / HTTP/1.1\r\n\r\n',
      '\0'.repeat(10_000),
      'PRI * HTTP/2.0\r\n\r\nSM\r\n\r\ngarbage!!!',
    ]) {
      const socket = connect(api.path);
      socket.on('error', () => undefined);
      socket.end(bytes);
      await once(socket.resume(), 'close');
    }
    const outcome = await ask(identityClient(api.path), 'GetStatus', {}).then(
      () => 'allowed',
      ({ code }: ServiceError) => (code === status.PERMISSION_DENIED ? 'refused' : code),
    );
    expect(outcome).toBe(who);
  });

  test('closing ends calls under way and takes the socket away; two do not share one', async () => {
    const { api, runDir } = await start();
    await expect(startGrpcApi({ runDir } as Parameters<typeof startGrpcApi>[0])).rejects.toMatchObject({
      code: 'SOCKET_IN_USE',
    });
    const client = clientOf(api.path, 'grpc.health.v1.Health', 'grpc/health/v1/health.proto');
    const watch = client.Watch?.({}) as ClientReadableStream<unknown>;
    await once(watch, 'data');
    const ended = once(watch.resume(), 'error');
    await api.close();
    expect([status.UNAVAILABLE, status.CANCELLED]).toContain(((await ended) as [ServiceError])[0].code);
    expect(existsSync(api.path)).toBe(false);
  });
});

test('every reason of an identity that is not given has its name in the proto file', () => {
  const types = loadSync('nodesentry/identity/v1/identity.proto', OPTIONS);
  const reason = types['nodesentry.identity.v1.Reason'] as EnumTypeDefinition;
  const { value } = reason.type as { value: { name: string }[] };
  const names = Object.keys(STATUS_OF_REASON).map((name) => `REASON_${name}`);
  expect(value.map(({ name }) => name)).toEqual(['REASON_UNSPECIFIED', ...names]);
});
