import { describe, expect, it } from 'vitest';
import { selectionOf } from '../../src/datapath/selection.js';
import { SELECT_ALL } from '../../src/pods/selection.js';
import { type ExplanationParts, explain, type SupposedFlow } from '../../src/reconcile/explanation.js';
import type { EndpointStatus } from '../../src/reconcile/status.js';
import { decision, routed } from './reconcile-fixture.js';

const FLOW: SupposedFlow = { direction: 'outbound', ip: '10.0.0.1', port: 80 };
const STATUS = { state: 'INTERCEPTED', programmed: true } as EndpointStatus;
const NONE = selectionOf(
  SELECT_ALL,
  { ...SELECT_ALL, outbound: { ports: [], include: undefined, exclude: [] } },
  { outbound: [], inbound: [] },
  { outbound: true, inbound: true },
);

function told(parts: Partial<ExplanationParts>, flow: SupposedFlow = FLOW) {
  return explain(flow, {
    decision: decision(1, routed(7, { inbound: true })),
    status: STATUS,
    isInKernel: () => true,
    hasListener: () => true,
    ...parts,
  });
}

describe('what would become of a flow', () => {
  it('is to be intercepted, by the pod’s own instance', () => {
    expect(told({})).toEqual({
      outcome: 'INTERCEPTED',
      rule: 'nothing excludes it',
      instance: 'default',
      inForce: true,
    });
  });

  it('is told where it is not in force yet', () => {
    expect(told({ isInKernel: () => false }).inForce).toBe(false);
    expect(told({ status: { ...STATUS, programmed: false } }).inForce).toBe(false);
  });

  it('is to pass, for a rule excludes it', () => {
    expect(told({ decision: decision(1, routed(7, { selection: NONE })) })).toMatchObject({
      outcome: 'EXCLUDED',
      rule: 'nodesentry.io/outbound none does not have port 80',
      instance: '',
    });
  });

  it('is what the failure policy says where there is no listener', () => {
    expect(told({ hasListener: () => false })).toMatchObject({ outcome: 'RESET', instance: 'default' });
    const open = { ...decision(1, routed(7)), failure: 'open' as const };
    expect(told({ hasListener: () => false, decision: open }).outcome).toBe('PASSED');
  });

  it.each(['127.0.0.1', '127.9.9.9', '::1'])('is to be dropped, to %s', (ip) => {
    expect(told({}, { ...FLOW, ip }).outcome).toBe('DROPPED');
    expect(told({}, { ...FLOW, ip, direction: 'inbound' }).outcome).toBe('INTERCEPTED');
  });

  it('is to pass where the pod is not intercepted, or not in that direction', () => {
    expect(told({ decision: undefined, status: undefined })).toMatchObject({
      outcome: 'PASSED',
      rule: 'the pod is PENDING',
    });
    const inbound = { ...FLOW, direction: 'inbound' as const };
    expect(told({ decision: decision(1, routed(7)) }, inbound)).toMatchObject({
      outcome: 'PASSED',
      rule: 'instance default has no inbound listener: only what the pod sends is intercepted',
    });
  });

  it('is unknown of a pod that is held as an agent before this one left it', () => {
    const held = decision(1, routed(7, { selection: { key: '#3', number: 3 } }));
    expect(told({ decision: held }).outcome).toBe('UNKNOWN');
  });
});
