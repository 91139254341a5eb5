/** Which pods are asked for a proof, and what counts of the answers. The canaries are a stand-in that a test answers for. */

import { beforeEach, describe, expect, test } from 'vitest';
import type { CanaryResult } from '../../src/datapath/canary.js';
import type { Installed } from '../../src/reconcile/endpoint-installer.js';
import type { PlannedEndpoint } from '../../src/reconcile/planned-endpoint.js';
import { Proofs } from '../../src/reconcile/proofs.js';
import { CanariesStandIn, decision, gate, routed } from './reconcile-fixture.js';

const PROVEN: CanaryResult = { kind: 'proven' };
const UNPROVEN: CanaryResult = { kind: 'unproven', reason: 'something takes packets first' };
const PROGRAM_ONLY: CanaryResult = { kind: 'program only', reason: 'verified: program only' };
const SILENT: CanaryResult = { kind: 'silent', reason: 'ENETDOWN' };
const RENEWED_AFTER_MS = 1_000;

/** Pod n as put in place at these interfaces, at 100 + n unless told. */
function installed(n: number, fields: Partial<Installed> = {}, ...more: PlannedEndpoint[]): Installed {
  const plan = decision(n, routed(100 + n), ...more);
  const row = { uid: plan.pod.uid, id: 10 + n, generation: 2, ifindex: 100 + n, sinceBirth: false };
  return { decision: plan, row, missing: undefined, changed: false, ...fields };
}

const uidOf = ({ decision: { pod } }: Installed) => pod.uid;
const WEB = installed(0);

let canaries: CanariesStandIn;
let nowMs: number;
let proofs: Proofs;
beforeEach(() => {
  canaries = new CanariesStandIn();
  nowMs = 1_700_000_000_000;
  proofs = new Proofs(canaries, () => nowMs);
});

describe('a pod that is asked for a proof', () => {
  test('is asked at its interface, under its row and for its instance', async () => {
    const web = installed(3, {}, routed(200, { instance: 1, ips: ['10.77.0.1'] }));
    expect(await proofs.ask([web])).toEqual([uidOf(web)]);
    const inside = { netns: '/run/netns/3', name: 'eth0' };
    const question = { endpoint: 13, generation: 2, inside };
    expect(canaries.asked).toEqual([
      [
        { ...question, ifindex: 103, instance: 0, ips: ['10.66.0.1'] },
        { ...question, ifindex: 200, instance: 1, ips: ['10.77.0.1'] },
      ],
    ]);
  });

  test('is known by the answer, as of when it came', async () => {
    expect(proofs.has(uidOf(WEB))).toBe(false);
    const answer = gate();
    canaries.answered = answer.opened;
    const asked = proofs.ask([WEB]);
    expect(proofs.get(uidOf(WEB))).toBeUndefined();
    nowMs += 40;
    answer.open();
    await asked;
    expect(proofs.get(uidOf(WEB))).toEqual({ result: PROVEN, atMs: nowMs });
    proofs.forget(uidOf(WEB));
    expect(proofs.has(uidOf(WEB))).toBe(false);
  });

  test.each([
    { at: [PROVEN, SILENT, PROVEN], counts: SILENT },
    { at: [PROVEN, UNPROVEN, SILENT], counts: UNPROVEN },
    { at: [SILENT, PROVEN, UNPROVEN], counts: UNPROVEN },
    { at: [PROVEN, PROGRAM_ONLY, SILENT], counts: PROGRAM_ONLY },
    { at: [UNPROVEN, PROGRAM_ONLY, PROVEN], counts: UNPROVEN },
    { at: [PROVEN, PROVEN, PROVEN], counts: PROVEN },
  ])('at three interfaces is $counts.kind: the worst of the answers counts', async ({ at, counts }) => {
    const web = installed(0, {}, routed(200), routed(300));
    [100, 200, 300].forEach((ifindex, index) => {
      canaries.answers.set(ifindex, at[index] ?? PROVEN);
    });
    expect(await proofs.ask([web])).toEqual([uidOf(web)]);
    expect(proofs.get(uidOf(web))?.result).toBe(counts);
  });

  test('has its own answer, whatever that of the pod beside it', async () => {
    canaries.answers.set(101, UNPROVEN);
    const pods = [installed(0), installed(1), installed(2)];
    await proofs.ask(pods);
    expect(pods.map((pod) => proofs.get(uidOf(pod))?.result.kind)).toEqual(['proven', 'unproven', 'proven']);
  });

  test('and is forgotten before the answer comes stays without a proof', async () => {
    const answer = gate();
    canaries.answered = answer.opened;
    const asked = proofs.ask([WEB, installed(1)]);
    proofs.forget(uidOf(WEB));
    answer.open();
    expect(await asked).toEqual([uidOf(installed(1))]);
    expect(proofs.has(uidOf(WEB))).toBe(false);
  });

  test('is not asked where something of it is missing, or all', async () => {
    const pods = [installed(0, { missing: 'no program' }), installed(1), installed(2, { row: undefined })];
    expect(await proofs.ask(pods)).toEqual([uidOf(installed(1))]);
    expect(canaries.take()).toEqual([101]);
    expect(proofs.has(uidOf(installed(0)))).toBe(false);
  });
});

describe('proofs are renewed', () => {
  test('of those only whose last one is old', async () => {
    const [young, old] = [installed(0), installed(1)];
    await proofs.ask([old]);
    nowMs += RENEWED_AFTER_MS / 2;
    await proofs.ask([young]);
    canaries.take();
    expect(await proofs.renew([young, old])).toEqual([]);
    nowMs += RENEWED_AFTER_MS / 2;
    expect(await proofs.renew([young, old])).toEqual([uidOf(old)]);
    expect(canaries.take()).toEqual([101]);
    expect(proofs.get(uidOf(old))?.atMs).toBe(nowMs);
  });

  test('the oldest first, after those that have none', async () => {
    const pods = Array.from({ length: 4 }, (_, n) => installed(n));
    for (const n of [2, 0, 3]) {
      await proofs.ask([installed(n)]);
      nowMs += RENEWED_AFTER_MS;
    }
    canaries.take();
    await proofs.renew(pods);
    expect(canaries.take()).toEqual([101, 102, 100, 103]);
  });

  test('25 at a time, and the others the next time', async () => {
    const pods = Array.from({ length: 60 }, (_, n) => installed(n));
    const counts: number[] = [];
    for (let look = 0; look < 4; look++) {
      counts.push((await proofs.renew(pods)).length);
    }
    expect(counts).toEqual([25, 25, 10, 0]);
    expect(new Set(canaries.take()).size).toBe(60);
  });

  test('of those that are in place, however many others are not', async () => {
    const broken = Array.from({ length: 30 }, (_, n) => installed(n, { missing: 'no program' }));
    const [sound] = [installed(99)];
    await proofs.ask([sound]);
    nowMs += RENEWED_AFTER_MS;
    expect(await proofs.renew([...broken, sound])).toEqual([uidOf(sound)]);
  });

  test('not twice at once', async () => {
    const answer = gate();
    canaries.answered = answer.opened;
    const first = proofs.renew([WEB]);
    expect(await proofs.renew([WEB, installed(1)])).toEqual([]);
    expect(canaries.asked).toHaveLength(1);
    answer.open();
    expect(await first).toEqual([uidOf(WEB)]);
    expect(await proofs.renew([WEB, installed(1)])).toEqual([uidOf(installed(1))]);
  });

  test('the next time too, where asking failed', async () => {
    canaries.failure = new Error('E2BIG');
    await expect(proofs.renew([WEB])).rejects.toThrow('E2BIG');
    canaries.failure = undefined;
    expect(await proofs.renew([WEB])).toEqual([uidOf(WEB)]);
  });
});

test('no answer is waited for at an interface that belongs to nobody any more', () => {
  proofs.removeInterface(100);
  expect(canaries.removed).toEqual([100]);
});
