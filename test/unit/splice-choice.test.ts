import { describe, expect, it } from 'vitest';
import type { SplicedPod } from '../../src/datapath/splice.js';
import { type SpliceGround, spliceStatus } from '../../src/datapath/splice-choice.js';
import { spliceFinding } from '../../src/doctor/splice.js';
import type { Pod, PodUid } from '../../src/pods/pod.js';
import { SplicedPods } from '../../src/reconcile/spliced-pods.js';
import type { EndpointStatus } from '../../src/reconcile/status.js';

const RIGHT: SpliceGround = { mode: 'auto', flaws: [], problem: undefined };
const FLAWED: SpliceGround = { ...RIGHT, flaws: ['MSG_OOB is not told'] };
const RUNC = { runtime: 'runc', netns: '/run/netns/a' } as const;

describe('whether a pod is spliced', () => {
  it.each([
    ['auto, and nothing wrong', RUNC, true, undefined, RIGHT, ''],
    ['auto, and the pod asks for it', RUNC, true, 'enabled', FLAWED, ''],
    ['enabled, whatever is wrong', RUNC, true, undefined, { ...FLAWED, mode: 'enabled' }, ''],
    ['the kernel gets it wrong', RUNC, true, undefined, FLAWED, 'this kernel does not do all of it right'],
    ['the node says no', RUNC, true, 'enabled', { ...RIGHT, mode: 'disabled' }, 'the node has it disabled'],
    ['the pod says no', RUNC, true, 'disabled', { ...RIGHT, mode: 'enabled' }, 'the pod has it disabled'],
    ['gVisor', { ...RUNC, runtime: 'runsc' }, true, 'enabled', RIGHT, 'the sockets of runsc'],
    ['a microVM', { ...RUNC, runtime: 'rund' }, true, 'enabled', RIGHT, 'the sockets of rund'],
    ['not intercepted', RUNC, false, 'enabled', RIGHT, 'the pod is not intercepted'],
    ['no bound', RUNC, true, 'enabled', { ...RIGHT, problem: 'no bound' }, 'no bound'],
    ['unknown namespace', { runtime: 'runc' }, true, 'enabled', RIGHT, 'no source tells'],
  ] as const)('%s', (_, pod, isIntercepted, asked, ground, reason) => {
    expect(spliceStatus(pod, isIntercepted, asked, ground)).toEqual({
      used: reason === '',
      reason: reason === '' ? '' : expect.stringContaining(reason),
    });
  });
});

describe('doctor', () => {
  const finds = (mode: SpliceGround['mode'], ground: SpliceGround) => spliceFinding(mode, () => ground);

  it('says what this kernel gets wrong, and warns only where it is on all the same', () => {
    expect(finds('auto', RIGHT)).toMatchObject({
      status: 'ok',
      found: expect.stringContaining('all of it right'),
    });
    expect(finds('auto', FLAWED)).toMatchObject({ status: 'ok', found: expect.stringContaining('MSG_OOB') });
    expect(finds('enabled', FLAWED)).toMatchObject({
      status: 'warn',
      found: expect.stringContaining('MSG_OOB'),
    });
    const none = { ...RIGHT, problem: 'nothing arrives' };
    expect(finds('auto', none)).toMatchObject({ status: 'ok', found: 'off: nothing arrives' });
    expect(finds('enabled', none)).toMatchObject({ status: 'warn', found: 'off: nothing arrives' });
  });

  it('does not try what is disabled', () => {
    const never = () => {
      throw new Error('tried');
    };
    expect(spliceFinding('disabled', never)).toMatchObject({ status: 'ok' });
  });
});

describe('the pods that are spliced', () => {
  const uid = 'a' as PodUid;

  function scene(ground: Omit<SpliceGround, 'mode'> = RIGHT) {
    const pod = { uid, runtime: 'runc', netns: '/run/netns/a', labels: {}, annotations: {} };
    const state = {
      pods: [pod as unknown as Pod],
      status: 'INTERCEPTED',
      cookie: 7n as bigint | undefined,
      asked: 0,
      written: [] as (readonly SplicedPod[])[],
      fails: undefined as string | undefined,
      problem: undefined as string | undefined,
    };
    const splices = new SplicedPods({
      splice: {
        get problem() {
          return state.problem;
        },
        counts: () => ({ ends: 0, messages: 0, bytes: 0, leftToTcp: 0, heldBack: 0 }),
        ensure: (pods) => {
          if (state.fails !== undefined) {
            throw new Error(state.fails);
          }
          state.written.push(pods);
          return true;
        },
      },
      mode: 'auto',
      trial: () => ground,
      store: { list: () => state.pods, get: (wanted) => state.pods.find((one) => one.uid === wanted) },
      statusOf: () => ({ state: state.status, interfaces: [{ ifindex: 3 }] }) as unknown as EndpointStatus,
      defaults: { enrol: 'all', failure: 'closed', other: 'pass' },
      netnsCookieAt: () => {
        state.asked += 1;
        return state.cookie;
      },
      log: { info: () => {}, warn: () => {} },
    });
    return { state, splices };
  }

  it('are written when something has changed, and not looked at otherwise', () => {
    const { state, splices } = scene();
    splices.ensure();
    splices.ensure();
    expect(state.written).toEqual([[{ netnsCookie: 7n, ifindex: 3 }]]);
    splices.changed();
    splices.ensure();
    expect([state.written.length, state.asked]).toEqual([2, 1]);
    expect(splices.statusOf(uid)).toEqual({ used: true, reason: '' });
    expect(splices.report()).toMatchObject({ mode: 'auto', pods: 1, problem: '' });
  });

  it('are left out as soon as they are not intercepted', () => {
    const { state, splices } = scene();
    splices.ensure();
    state.status = 'DEGRADED';
    splices.changed();
    splices.ensure();
    expect(state.written.at(-1)).toEqual([]);
    expect(splices.statusOf(uid)).toEqual({ used: false, reason: 'the pod is not intercepted' });
  });

  it('are tried again while their namespace cannot be entered, or a table refuses', () => {
    const { state, splices } = scene();
    state.cookie = undefined;
    splices.ensure();
    expect(splices.statusOf(uid)).toEqual({ used: false, reason: 'not in place yet' });
    state.cookie = 9n;
    state.fails = 'full';
    splices.ensure();
    expect(splices.report()).toMatchObject({ pods: 0, problem: 'full' });
    state.fails = undefined;
    splices.ensure();
    expect(splices.report()).toMatchObject({ pods: 1, problem: '' });
  });

  it('are none where the programs cannot be loaded', () => {
    const { state, splices } = scene();
    state.problem = 'this kernel does not do it';
    splices.ensure();
    expect(splices.statusOf(uid)).toEqual({ used: false, reason: 'this kernel does not do it' });
    expect(splices.report()).toMatchObject({ pods: 0, problem: 'this kernel does not do it' });
  });
});
