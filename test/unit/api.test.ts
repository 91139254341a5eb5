import { once } from 'node:events';
import { existsSync, mkdtempSync, readdirSync, readlinkSync, rmSync, statSync, writeFileSync } from 'node:fs';
import { createServer } from 'node:net';
import { tmpdir } from 'node:os';
import { dirname, join } from 'node:path';
import { PassThrough } from 'node:stream';
import { Pool } from 'undici';
import { afterEach, beforeEach, describe, expect, test, vi } from 'vitest';
import { ApiClient, ApiError } from '../../src/api/client.js';
import { FlowWatch } from '../../src/api/flow-watch.js';
import type { FlowMessage } from '../../src/api/messages.js';
import { removeStaleSocket } from '../../src/api/unix-socket.js';
import type { FlowEvent, FlowListener } from '../../src/datapath/flows.js';
import { peerCredentials } from '../../src/native/sockets.js';
import { Metrics } from '../../src/telemetry/metrics.js';
import {
  DST,
  type Fixture,
  type FixtureOptions,
  flowRecord,
  identityParts,
  pod,
  SRC,
  startFixture,
} from './api-fixture.js';

const opened: (() => Promise<unknown> | unknown)[] = [];

afterEach(async () => {
  for (const close of opened.splice(0).reverse()) {
    await close();
  }
});

interface Reply {
  readonly status: number;
  readonly type: string;
  readonly body: Record<string, unknown>;
  readonly text: string;
}

async function start(options: FixtureOptions = {}) {
  const fixture = await startFixture(options);
  opened.push(() => fixture.close());
  const client = new ApiClient({ runDir: fixture.runDir });
  const pool = new Pool('http://localhost', { socketPath: fixture.api.path, connections: 1 });
  opened.push(
    () => client.close(),
    () => pool.destroy(),
  );
  const ask = async (
    path: string,
    headers: Record<string, string> = { 'nodesentry.io': 'true' },
    body?: string,
  ) => {
    const method = body === undefined ? 'GET' : 'POST';
    const response = await pool.request({ path, method, headers, ...(body === undefined ? {} : { body }) });
    const text = await response.body.text();
    const type = String(response.headers['content-type']);
    const parsed = type.includes('json') ? (JSON.parse(text) as Record<string, unknown>) : {};
    return { status: response.statusCode, type, body: parsed, text } satisfies Reply;
  };
  return { fixture, client, ask };
}

const RESOLVE = '/v1/resolve?proto=tcp&src=10.66.0.3:41886&dst=10.200.1.1:80';
const JSON_HEADERS = { 'nodesentry.io': 'true', 'content-type': 'application/json' };

describe('GET /v1/resolve', () => {
  let ask: Awaited<ReturnType<typeof start>>['ask'];
  let fixture: Fixture;
  beforeEach(async () => {
    ({ ask, fixture } = await start());
  });

  test('names the pod of a flow', async () => {
    const { status, body } = await ask(RESOLVE);
    expect(status).toBe(200);
    expect(body).toMatchObject({
      workload: { podName: 'web-0' },
      assurance: 'DATAPATH_RECORDED',
      ttlMs: 1000,
    });
  });

  test('without the guard header is refused with a problem', async () => {
    const { status, type, body } = await ask(RESOLVE, {});
    expect([status, type]).toEqual([400, 'application/problem+json']);
    expect(body).toEqual({
      type: 'urn:nodesentry:problem:HEADER_MISSING',
      title: 'A header is missing',
      status: 400,
      detail: 'send the header "nodesentry.io: true"',
      reason: 'HEADER_MISSING',
    });
  });

  test.each([
    ['src=10.66.0.3:1&dst=10.0.0.1:80', 'proto: expected tcp or udp, got nothing'],
    ['proto=sctp&src=10.66.0.3:1&dst=10.0.0.1:80', 'proto: expected tcp or udp, got "sctp"'],
    ['proto=tcp&dst=10.0.0.1:80', 'src: expected an address and port'],
    ['proto=tcp&src=10.66.0.3&dst=10.0.0.1:80', 'src: expected an address and port'],
    ['proto=tcp&src=10.66.0.3:0&dst=10.0.0.1:80', 'src: expected an address and port'],
    ['proto=tcp&src=10.66.0.3:1&dst=10.0.0.1:65536', 'dst: expected an address and port'],
    ['proto=tcp&src=10.66.0.3:1&src=10.66.0.4:1&dst=10.0.0.1:80', 'src: expected an address and port'],
    [
      'proto=tcp&src=10.66.0.3:1&dst=10.0.0.1:80&colour=red',
      'colour: unknown key; known are proto, src, dst',
    ],
    ['proto=tcp&src=10.66.0.3:1&dst=10.0.0.1:80&minAssurance=ALL', 'minAssurance: expected one of IP_ONLY'],
    [`proto=tcp&dst=10.0.0.1:80&src=${'1'.repeat(500)}`, 'src: expected an address and port'],
    [`proto=tcp&dst=10.0.0.1:80&src=${'1'.repeat(3000)}`, 'the URL: expected at most 2048 characters'],
  ])('a malformed request is told which key is wrong (%#)', async (query, detail) => {
    const { status, type, body } = await ask(`/v1/resolve?${query}`);
    expect([status, type, body.reason]).toEqual([400, 'application/problem+json', 'KEY_INVALID']);
    expect(body.detail).toContain(detail);
  });

  test('refuses with the status of the reason', async () => {
    const unknown = '/v1/resolve?proto=tcp&src=10.9.9.9:1&dst=10.200.1.1:80';
    expect(await ask(unknown)).toMatchObject({ status: 404, body: { reason: 'WORKLOAD_NOT_FOUND' } });
    fixture.state.synced = false;
    expect(await ask(unknown)).toMatchObject({ status: 503, body: { reason: 'NOT_SYNCED' } });
    fixture.store.replaceSource('static', [pod('web-0'), pod('web-1')]);
    const ambiguous = '/v1/resolve?proto=tcp&src=10.66.0.3:1&dst=10.200.1.1:80';
    expect(await ask(ambiguous)).toMatchObject({ status: 409, body: { reason: 'AMBIGUOUS' } });
    fixture.store.replaceSource('static', [pod('web-0')]);
    for (const minAssurance of ['', '&minAssurance=DATAPATH_RECORDED', '&minAssurance=IP_AND_IFACE']) {
      expect(await ask(`${ambiguous}${minAssurance}`)).toMatchObject({
        status: 412,
        body: { reason: 'ASSURANCE_TOO_LOW' },
      });
    }
    expect(await ask(`${ambiguous}&minAssurance=IP_ONLY`)).toMatchObject({
      status: 200,
      body: { assurance: 'IP_ONLY', workload: { podName: 'web-0' } },
    });
  });

  test('an error of ours is a 500 that gives nothing away, and is logged', async () => {
    fixture.datapath.lookupFlow = () => {
      throw new Error('secret');
    };
    const { status, text } = await ask(RESOLVE);
    expect(status).toBe(500);
    expect(text).not.toContain('secret');
    expect(fixture.warnings).toHaveLength(1);
  });
});

describe('POST /v1/resolve:batch', () => {
  test('answers each query for itself, in order', async () => {
    const { ask, client } = await start();
    const { results } = await client.resolveBatch([
      { proto: 'tcp', src: { ip: '10.9.9.9', port: 1 }, dst: DST },
      { proto: 'tcp', src: SRC, dst: DST },
    ]);
    expect(results).toMatchObject([
      { problem: { reason: 'WORKLOAD_NOT_FOUND', status: 404 } },
      { resolution: { workload: { podName: 'web-0' } } },
    ]);
    const weak = { proto: 'tcp', src: { ...SRC, port: 1 }, dst: DST } as const;
    expect(await client.resolveBatch([weak, { ...weak, minAssurance: 'IP_ONLY' }])).toMatchObject({
      results: [
        { problem: { reason: 'ASSURANCE_TOO_LOW', status: 412 } },
        { resolution: { assurance: 'IP_ONLY' } },
      ],
    });
    const mixed = JSON.stringify({ queries: [{ proto: 'tcp', src: 'x', dst: '10.0.0.1:80' }, 7] });
    expect((await ask('/v1/resolve:batch', JSON_HEADERS, mixed)).body).toMatchObject({
      results: [
        { problem: { reason: 'KEY_INVALID', detail: expect.stringContaining('queries[0].src') } },
        { problem: { reason: 'KEY_INVALID', detail: expect.stringContaining('queries[1]') } },
      ],
    });
  });

  test.each([
    ['{"queries": 7}', 400],
    ['[]', 400],
    ['{"queries": [], "more": 1}', 400],
    ['{', 400],
    [JSON.stringify({ queries: Array(257).fill({}) }), 400],
    [JSON.stringify({ queries: ['x'.repeat(200_000)] }), 413],
  ])('refuses a body that is malformed or too large (%#)', async (body, status) => {
    const { ask } = await start();
    const reply = await ask('/v1/resolve:batch', JSON_HEADERS, body);
    expect([reply.status, reply.type, reply.body.reason]).toEqual([
      status,
      'application/problem+json',
      'KEY_INVALID',
    ]);
  });
});

describe('the other resources', () => {
  test('workloads come with how far their interception has come', async () => {
    const { ask, client, fixture } = await start();
    const { epoch, revision, workloads } = await client.workloads();
    expect([epoch, revision]).toEqual(['epoch-1', 1]);
    expect(workloads).toMatchObject([
      {
        podName: 'web-0',
        generation: 3,
        interception: {
          state: 'INTERCEPTED',
          desired: true,
          programmed: true,
          verified: true,
          interface: 'veth0',
        },
      },
    ]);
    expect(await client.workload('uid-web-0')).toEqual(workloads[0]);
    fixture.store.replaceSource('static', []);
    expect(await client.workload('uid-web-0')).toMatchObject({ state: 'TERMINATING' });
    expect(await ask('/v1/workloads/nobody')).toMatchObject({
      status: 404,
      body: { reason: 'WORKLOAD_NOT_FOUND' },
    });
    expect(await ask('/v1/workloads?x=1')).toMatchObject({ status: 400, body: { reason: 'KEY_INVALID' } });
  });

  test('flows are listed with their pods, at most as many as asked for', async () => {
    const { ask, client, fixture } = await start();
    fixture.datapath.flows.push(flowRecord(SRC, { ip: 'fd00::1', port: 443 }, { endpointId: 99 }));
    expect(await client.flows(10)).toMatchObject([
      { src: '10.66.0.3:41886', dst: '10.200.1.1:80', podName: 'web-0', verdict: 'FLOW_STARTED' },
      { dst: '[fd00::1]:443', podName: '', podUid: '' },
    ]);
    expect(await client.flows(1)).toHaveLength(1);
    for (const limit of ['0', '10001', 'x', '']) {
      expect(await ask(`/v1/flows?limit=${limit}`)).toMatchObject({
        status: 400,
        body: { reason: 'KEY_INVALID' },
      });
    }
  });

  test('status says what is missing', async () => {
    const { client, fixture } = await start();
    fixture.state.blockers = ['source cri has not synced'];
    fixture.datapath.packets = [
      { endpointId: 1, podUid: undefined, direction: 'EGRESS', packets: { FLOW_STARTED: 2, MALFORMED: 0 } },
      { endpointId: 0, podUid: undefined, direction: 'EGRESS', packets: { FLOW_STARTED: 1, MALFORMED: 0 } },
    ];
    expect(await client.status()).toMatchObject({
      version: '1.2.3',
      node: 'node-a',
      ready: false,
      blockers: ['source cri has not synced'],
      sources: [{ name: 'static', synced: true, lastError: '' }],
      endpoints: { INTERCEPTED: 1, REFUSED: 0 },
      packets: { FLOW_STARTED: 3 },
      eventsLost: { kernel: 2, agent: 1 },
    });
  });

  test('health, readiness and metrics need no header; readiness names its blockers', async () => {
    const { ask, fixture } = await start();
    fixture.state.blockers = ['source static has not synced'];
    expect((await ask('/livez', {})).status).toBe(200);
    expect(await ask('/readyz', {})).toMatchObject({
      status: 503,
      type: 'application/problem+json',
      body: { reason: 'NOT_READY', blockers: ['source static has not synced'] },
    });
    fixture.state.blockers = [];
    expect((await ask('/readyz', {})).status).toBe(200);
  });

  test('an unknown path is a problem, as is a path that cannot be decoded', async () => {
    const { ask } = await start();
    expect(await ask('/v1/nothing')).toMatchObject({ status: 404, body: { reason: 'NOT_FOUND' } });
    expect(await ask('/v1/workloads/%zz')).toMatchObject({ status: 400, type: 'application/problem+json' });
  });

  test('metrics count packets by pod, endpoints by state, and the questions that were asked', async () => {
    const { ask, fixture, client } = await start();
    fixture.datapath.packets = [
      { endpointId: 1, podUid: pod('web-0').uid, direction: 'EGRESS', packets: { SPOOFED_SOURCE: 4 } },
    ];
    fixture.datapath.listening = [
      {
        instance: 'default',
        direction: 'outbound',
        family: 6,
        address: 'not configured',
        adopted: false,
        sockets: { all: 1, transparent: 0 },
        refused: 'held by uid 65534',
      },
    ];
    await client.resolve({ proto: 'tcp', src: SRC, dst: DST });
    await ask('/v1/resolve?proto=tcp');
    for (const _ of [1, 2]) {
      const { text, type } = await ask('/metrics', {});
      expect(type).toContain('text/plain');
      for (const line of [
        'nodesentry_packets_total{namespace="default",pod="web-0",direction="egress",verdict="SPOOFED_SOURCE"} 4',
        'nodesentry_endpoints{state="INTERCEPTED"} 1',
        'nodesentry_endpoints{state="DEGRADED"} 0',
        'nodesentry_listener_adopted{instance="default",direction="outbound",family="ipv6"} 0',
        'nodesentry_listener_refused{instance="default",direction="outbound",family="ipv6"} 1',
        'nodesentry_flow_events_lost_total{where="kernel"} 2',
        'nodesentry_pods{source="static",runtime="runsc"} 1',
        'nodesentry_resolves_total{result="DATAPATH_RECORDED"} 1',
        'nodesentry_resolves_total{result="KEY_INVALID"} 1',
        'nodesentry_resolve_duration_seconds_count 2',
      ]) {
        expect(text).toContain(line);
      }
      expect(text).toMatch(/nodesentry_build_info\{version="1.2.3",node_version="v\d+/);
    }
  });
});

test('metrics count late pods where the CNI plugin is a source, and say nothing of them where it is not', async () => {
  const { store, datapath } = identityParts({ synced: true, blockers: [], nowMs: 0 });
  expect(await new Metrics({ store, datapath, version: '1' }).text()).not.toContain('pods_late');
  datapath.late = 0;
  const metrics = new Metrics({ store, datapath, version: '1' });
  expect(await metrics.text()).toMatch(/^nodesentry_pods_late_total 0$/m);
  datapath.late = 3;
  for (const _ of [1, 2]) {
    expect(await metrics.text()).toMatch(/^nodesentry_pods_late_total 3$/m);
  }
});

test('metrics say how well a source follows that can tell', async () => {
  const { store, datapath } = identityParts({ synced: true, blockers: [], nowMs: 0 });
  const stats = { lastEventAtMs: Date.now() - 42_000, relists: 3, watchRestarts: { stalled: 1, ended: 2 } };
  const sources = [{ name: 'kubernetes', stats } as const, { name: 'static' } as const];
  const metrics = new Metrics({ store, datapath, sources, version: '1' });
  for (const _ of [1, 2]) {
    const lines = (await metrics.text()).split('\n').filter((line) => line.startsWith('nodesentry_source_'));
    expect(lines.map((line) => line.replace(/(?<=seconds.* 42)\.\d+$/, ''))).toEqual([
      'nodesentry_source_last_event_age_seconds{source="kubernetes"} 42',
      'nodesentry_source_relists_total{source="kubernetes"} 3',
      'nodesentry_source_watch_restarts_total{source="kubernetes",reason="stalled"} 1',
      'nodesentry_source_watch_restarts_total{source="kubernetes",reason="ended"} 2',
    ]);
  }
});

describe('following flows', () => {
  const event: FlowEvent = { ...flowRecord(SRC, DST), verdict: 'NO_LISTENER_RESET' };

  test('delivers each event with its pod, and stops costing anything when the reader leaves', async () => {
    const { client, fixture } = await start();
    const stop = new AbortController();
    const seen: unknown[] = [];
    for await (const line of client.followFlows(stop.signal, () => fixture.datapath.emit(event))) {
      seen.push(line);
      if (seen.length === 1) {
        fixture.datapath.emit({ ...event, endpointId: 99 });
      } else {
        stop.abort();
      }
    }
    expect(seen).toMatchObject([
      { podName: 'web-0', src: '10.66.0.3:41886', verdict: 'NO_LISTENER_RESET' },
      { podName: '' },
    ]);
    await vi.waitFor(() => expect(fixture.datapath.subscribers.size).toBe(0));
  });

  test('ends with an error when the agent ends', async () => {
    const { client, fixture } = await start();
    const reading = (async () => {
      const never = new AbortController().signal;
      for await (const _ of client.followFlows(never, () => void fixture.api.close())) {
        // nothing comes
      }
    })();
    await expect(reading).rejects.toMatchObject({ name: 'ApiError', code: 'CONNECTION_FAILED' });
  });

  test('is refused to more than 16 at once', async () => {
    const { client, ask } = await start();
    let open = 0;
    const watchers = Array.from({ length: 16 }, () => {
      const stop = new AbortController();
      const watcher = new ApiClient({ runDir: dirname(client.socketPath) });
      const lines = watcher.followFlows(stop.signal, () => {
        open += 1;
      });
      return { stop, ended: lines.next().finally(() => watcher.close()) };
    });
    opened.push(async () => {
      for (const { stop } of watchers) {
        stop.abort();
      }
      await Promise.all(watchers.map(({ ended }) => ended));
    });
    await vi.waitFor(() => expect(open).toBe(16));
    expect(await ask('/v1/flows/watch')).toMatchObject({ status: 429, body: { reason: 'RATE_LIMITED' } });
  });

  test('a reader that is behind is told at which point how many events are missing', async () => {
    const listeners = new Set<FlowListener>();
    const watch = new FlowWatch({
      onFlowEvent: (listener) => {
        listeners.add(listener);
        return () => listeners.delete(listener);
      },
      describe: ({ startedMs }) => ({ startedMs }) as FlowMessage,
      queueLimit: 3,
    });
    const output = new PassThrough({ highWaterMark: 1 });
    watch.follow(output);
    for (let startedMs = 1; startedMs <= 10; startedMs++) {
      for (const listener of listeners) {
        listener.event({ ...event, startedMs });
      }
    }
    for (const listener of listeners) {
      listener.leftOut(5);
    }
    let text = '';
    output.on('data', (chunk: Buffer) => {
      text += chunk.toString();
    });
    const lines = () => text.split('\n').filter((line) => line !== '');
    await vi.waitFor(() => expect(lines()).toHaveLength(5));
    expect(lines().map((line) => JSON.parse(line))).toEqual([
      { startedMs: 1 },
      { startedMs: 2 },
      { startedMs: 3 },
      { startedMs: 4 },
      { lost: 11 },
    ]);
    watch.close();
    await once(output, 'close');
    expect(listeners.size).toBe(0);
  });
});

describe('who may ask', () => {
  const config = (allow: string) => `sources: {static: {file: p.yaml}}\napi: {allow: ${allow}}`;

  test('root may, by what the kernel says about the connection', async () => {
    const { ask } = await start({ credentials: peerCredentials });
    expect((await ask(RESOLVE)).status).toBe(200);
  });

  test('another uid may not, not even for metrics, and is logged once a minute', async () => {
    const { ask, fixture, client } = await start({ credentials: () => ({ pid: 7, uid: 1000, gid: 1000 }) });
    expect(await ask(RESOLVE)).toMatchObject({ status: 403, body: { reason: 'CALLER_NOT_ALLOWED' } });
    expect((await ask('/metrics', {})).status).toBe(403);
    await expect(client.status()).rejects.toMatchObject({ code: 'CALLER_NOT_ALLOWED', status: 403 });
    expect(fixture.warnings).toEqual([{ pid: 7, uid: 1000, gid: 1000 }]);
  });

  test('a uid, a gid or an executable can be named', async () => {
    const caller = () => ({ pid: process.pid, uid: 1000, gid: 2000 });
    for (const [allow, status] of [
      ['[{uid: 1000}]', 200],
      ['[{uid: 2000}]', 403],
      ['[{gid: 2000}]', 200],
      ['[{gid: 1000}]', 403],
      [`[{uid: 0}, {exe: ${process.execPath}}]`, 200],
      ['[{exe: /bin/true}]', 403],
      ['[{exe: /no/such/file}]', 403],
    ] as const) {
      const { ask } = await start({ config: config(allow), credentials: caller });
      expect([allow, (await ask(RESOLVE)).status]).toEqual([allow, status]);
    }
  });

  test('the executable is checked with the credentials of the kernel, and no descriptor is left open', async () => {
    const { ask } = await start({
      config: config(`[{exe: ${process.execPath}}]`),
      credentials: peerCredentials,
    });
    const pidfds = () =>
      readdirSync('/proc/self/fd').filter((fd) => {
        try {
          return readlinkSync(`/proc/self/fd/${fd}`).includes('pidfd');
        } catch {
          return false; // the descriptor that listed the others
        }
      }).length;
    const before = pidfds();
    expect((await ask(RESOLVE)).status).toBe(200);
    expect(pidfds()).toBe(before);
  });

  test('the socket is for root alone unless others are named', async () => {
    const modeOf = async (allow: string) => {
      const { fixture } = await start({ config: config(allow) });
      const { mode, gid } = statSync(fixture.api.path);
      return [(mode & 0o777).toString(8), gid];
    };
    expect(await modeOf('[{uid: 0}]')).toEqual(['600', 0]);
    expect(await modeOf('[{uid: 0}, {gid: 1234}]')).toEqual(['660', 1234]);
    expect(await modeOf('[{gid: 1234}, {gid: 1234}, {exe: /bin/true}]')).toEqual(['660', 1234]);
    expect(await modeOf('[{uid: 1000}]')).toEqual(['666', 0]);
    expect(await modeOf('[{uid: 1000}, {exe: /bin/true}]')).toEqual(['666', 0]);
    expect(await modeOf('[{gid: 1234}, {gid: 1235}]')).toEqual(['666', 0]);
  });

  test('an executable alone opens the socket to nobody: who runs it says little about who asks', async () => {
    const { fixture } = await start({ config: config('[{uid: 0}, {exe: /bin/true}]') });
    expect((statSync(fixture.api.path).mode & 0o777).toString(8)).toBe('600');
  });
});

describe('the socket file', () => {
  test('goes when the API ends', async () => {
    const fixture = await startFixture();
    await fixture.api.close();
    expect(existsSync(fixture.api.path)).toBe(false);
    await fixture.close();
  });

  test('of a dead agent is replaced, of a live one and a plain file are left alone', async () => {
    const folder = mkdtempSync(join(tmpdir(), 'nodesentry-socket-'));
    opened.push(() => rmSync(folder, { recursive: true }));
    const live = join(folder, 'live.sock');
    const server = createServer().listen(live);
    await once(server, 'listening');
    opened.push(() => server.close());
    await expect(removeStaleSocket(live)).rejects.toMatchObject({ code: 'SOCKET_IN_USE' });
    const file = join(folder, 'file');
    writeFileSync(file, '');
    await expect(removeStaleSocket(file)).rejects.toMatchObject({ code: 'SOCKET_IN_USE' });
    await expect(removeStaleSocket(join(folder, 'nothing'))).resolves.toBeUndefined();
  });
});

describe('a client without an agent', () => {
  test('is told what to do', async () => {
    const client = new ApiClient({ runDir: '/nonexistent/run' });
    opened.push(() => client.close());
    const error: unknown = await client.status().catch((reason: unknown) => reason);
    expect(error).toBeInstanceOf(ApiError);
    expect(error).toMatchObject({
      code: 'NO_AGENT',
      message:
        'no agent answers at /nonexistent/run/http.sock: start it with "nodesentry agent" or name its --run-dir',
    });
  });
});
