/** What the agent writes to its own node, and how it is tried again. */

import { beforeEach, describe, expect, it, vi } from 'vitest';
import { Duty } from '../../src/cluster/duty.js';
import { NodeAnnotation } from '../../src/cluster/node-annotation.js';
import { OwnNode } from '../../src/cluster/own-node.js';
import { StartupTaint } from '../../src/cluster/startup-taint.js';
import type { PodUid } from '../../src/pods/pod.js';
import { KubernetesError, type Write } from '../../src/pods/sources/kubernetes-client.js';
import type { EndpointState, EndpointStatus } from '../../src/reconcile/status.js';

const NEVER = new AbortController().signal;
const log = { info: vi.fn(), warn: vi.fn(), error: vi.fn() };
const OURS = { key: 'nodesentry.io/agent-not-ready', effect: 'NoExecute' };
const ANOTHER = { key: 'dedicated', value: 'apps', effect: 'NoSchedule' };

let nowMs: number;
let ready: boolean;
let taints: { key: string }[];
let statuses: EndpointStatus[];
let gets: number;
let writes: Write[];
/** Before the write: somebody else's. */
let before: () => void;
let node: OwnNode;

beforeEach(() => {
  nowMs = 0;
  ready = true;
  taints = [];
  statuses = [];
  gets = 0;
  writes = [];
  before = () => undefined;
  vi.clearAllMocks();
  const client = {
    get: async () => {
      gets += 1;
      return { spec: taints.length === 0 ? {} : { taints } };
    },
    write: async (_call: unknown, write: Write) => {
      before();
      writes.push(write);
      if (write.kind === 'json') {
        const [test, replace] = write.patch as [{ value: unknown }, { value: { key: string }[] }];
        if (JSON.stringify(test.value) !== JSON.stringify(taints)) {
          throw new KubernetesError('REJECTED', 'the test failed');
        }
        taints = replace.value;
      }
      return {};
    },
  };
  node = new OwnNode(client, 'node-a');
});

const clock = () => nowMs;
const endpoint = (state: EndpointState, inbound = true): EndpointStatus => ({
  podUid: `uid-${statuses.length}` as PodUid,
  state,
  reason: undefined,
  interfaces: [],
  inbound,
  failure: 'closed',
  desired: true,
  programmed: true,
  verified: true,
});

describe('the startup taint', () => {
  const make = () => new StartupTaint({ node, ready: () => ready, log, nowMs: clock });

  it('stays until the agent is ready, and then goes alone', async () => {
    taints = [ANOTHER, OURS];
    const taint = make();
    ready = false;
    await taint.step(NEVER);
    expect(gets).toBe(0);
    ready = true;
    await taint.step(NEVER);
    expect(taints).toEqual([ANOTHER]);
  });

  it('goes whatever its effect, and each time that it stands there', async () => {
    taints = [OURS, { ...OURS, effect: 'NoSchedule' } as typeof OURS];
    await make().step(NEVER);
    expect(taints).toEqual([]);
  });

  it('takes no taint with it that came in between', async () => {
    taints = [OURS];
    before = () => {
      taints = [...taints, ANOTHER];
      before = () => undefined;
    };
    await make().step(NEVER);
    expect(taints).toEqual([ANOTHER]);
    expect(writes).toHaveLength(2);
  });

  it('that changes all the time is left for later', async () => {
    taints = [OURS];
    before = () => {
      taints = [...taints, ANOTHER];
    };
    await expect(make().step(NEVER)).rejects.toMatchObject({ code: 'REJECTED' });
    expect(writes).toHaveLength(5);
  });

  it('is looked for again only after five minutes', async () => {
    const taint = make();
    for (; nowMs < 300_000; nowMs += 1_000) {
      await taint.step(NEVER);
    }
    expect(gets).toBe(1);
    taints = [OURS];
    await taint.step(NEVER);
    expect(taints).toEqual([]);
    expect(writes).toHaveLength(1);
  });
});

describe('the annotation of the node', () => {
  const make = () =>
    new NodeAnnotation({
      node,
      version: '1.2.3',
      ready: () => ready,
      statuses: () => statuses,
      nowMs: clock,
    });
  const texts = () =>
    writes.map((write): unknown => {
      const { metadata } = (write as { patch: { metadata: { annotations: Record<string, string> } } }).patch;
      return JSON.parse(metadata.annotations['nodesentry.io/status'] ?? '');
    });

  it('counts the pods', async () => {
    statuses = [
      endpoint('INTERCEPTED'),
      endpoint('INTERCEPTED', false),
      endpoint('DEGRADED'),
      endpoint('NOT_ENROLLED'),
    ];
    await make().step(NEVER);
    const rest = { degraded: 1, refused: 0, pending: 0 };
    expect(texts()).toEqual([{ version: '1.2.3', ready: true, intercepted: 2, outboundOnly: 1, ...rest }]);
  });

  it('is written at most every 30 seconds, and only where it is another', async () => {
    const annotation = make();
    for (; nowMs < 100_000; nowMs += 1_000) {
      if (nowMs < 61_000) {
        statuses = [...statuses, endpoint('INTERCEPTED')];
      }
      await annotation.step(NEVER);
    }
    expect(texts().map((text) => (text as { intercepted: number }).intercepted)).toEqual([1, 31, 61]);
  });

  it('says of an agent that it is not ready only when that lasts', async () => {
    ready = false;
    const annotation = make();
    await annotation.step(NEVER);
    expect(writes).toEqual([]);
    nowMs = 30_000;
    await annotation.step(NEVER);
    expect(texts()).toMatchObject([{ ready: false }]);
  });
});

describe('a duty', () => {
  it('that fails says so once, however often, and works on', async () => {
    const abort = new AbortController();
    let steps = 0;
    const duty = new Duty({
      what: 'events on pods',
      log,
      everyMs: 1,
      backoffFirstMs: 1,
      backoffMaxMs: 2,
      step: async () => {
        steps += 1;
        if (steps <= 20) {
          throw new KubernetesError('FORBIDDEN', `create events: no, in namespace ${steps}`);
        }
      },
    });
    const run = duty.run(abort.signal);
    await vi.waitFor(() => expect(steps).toBeGreaterThan(5), { interval: 1 });
    expect(duty.problem).toMatch(/^events on pods: create events: no/);
    await vi.waitFor(() => expect(duty.problem).toBeUndefined());
    abort.abort();
    await run;
    expect(log.warn).toHaveBeenCalledOnce();
    expect(log.info).toHaveBeenCalledOnce();
  });
});
