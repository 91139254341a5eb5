import { describe, expect, it } from 'vitest';
import { datagramsOf, selectionOf } from '../../src/datapath/selection.js';
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

  it('is to be reset, at a proxy’s own port; dialled by the pod itself it is explicit', () => {
    expect(told({ atNode: () => ({ explicit: undefined }) }).outcome).toBe('RESET');
    expect(told({ atNode: () => ({ explicit: 'cache' }) })).toMatchObject({
      outcome: 'EXPLICIT',
      instance: 'cache',
    });
  });

  it('is unknown of a pod that is held as an agent before this one left it', () => {
    const held = decision(1, routed(7, { selection: { key: '#3', number: 3 } }));
    expect(told({ decision: held }).outcome).toBe('UNKNOWN');
  });
});

describe('what would become of a datagram', () => {
  const rules = { ports: [{ from: 53, to: 53 }], include: undefined, exclude: [] };
  const datagrams = datagramsOf(
    { outbound: rules, inbound: rules },
    SELECT_ALL,
    { outbound: [], inbound: [] },
    { outbound: true, inbound: true },
  );
  const DNS: SupposedFlow = { ...FLOW, protocol: 'udp', port: 53 };
  const OTHER: SupposedFlow = { ...DNS, port: 54 };
  const of = (plan: Parameters<typeof routed>[1]) => ({
    decision: decision(1, routed(7, { inbound: true, datagrams, ...plan })),
  });

  it('is to be intercepted, to a port that is named alone', () => {
    expect(told(of({}), DNS)).toMatchObject({ outcome: 'INTERCEPTED', instance: 'default' });
    expect(told(of({}), { ...DNS, direction: 'inbound' }).outcome).toBe('INTERCEPTED');
    expect(told(of({}), OTHER)).toMatchObject({ outcome: 'EXCLUDED', instance: '' });
    expect(told(of({ datagrams: undefined }), DNS).outcome).toBe('EXCLUDED');
    expect(told(of({ inbound: false }), { ...DNS, direction: 'inbound' }).outcome).toBe('PASSED');
  });

  it('is to be refused at a proxy’s own port, but where that is named', () => {
    const asked: unknown[] = [];
    const atNode: ExplanationParts['atNode'] = (...address) => {
      asked.push(address);
      return { explicit: undefined };
    };
    expect(told({ ...of({}), atNode }, OTHER).outcome).toBe('RESET');
    expect(asked).toEqual([['10.0.0.1', 54, 'udp']]);
    expect(told({ ...of({}), atNode }, DNS).outcome).toBe('INTERCEPTED');
    expect(told({ ...of({ datagrams: undefined }), atNode }, OTHER).outcome).toBe('EXCLUDED');
  });

  it('is to be dropped to a loopback address, as far as it would be intercepted', () => {
    expect(told(of({}), { ...DNS, ip: '127.0.0.1' }).outcome).toBe('DROPPED');
    expect(told({ ...of({}), hasListener: () => false }, { ...DNS, ip: '::1' }).outcome).toBe('DROPPED');
    expect(told(of({}), { ...OTHER, ip: '127.0.0.1' }).outcome).toBe('EXCLUDED');
    expect(told(of({}), { ...DNS, ip: '127.0.0.1', direction: 'inbound' }).outcome).toBe('INTERCEPTED');
  });

  it.each([
    ['to a port that is not named', OTHER, 'DROPPED'],
    ['to a named one', DNS, 'INTERCEPTED'],
    ['to one that stays open', { ...DNS, port: 123 }, 'EXCLUDED'],
    ['to a DHCP server', { ...DNS, port: 67 }, 'EXCLUDED'],
    ['to that of DHCPv6, over IPv4', { ...DNS, port: 547 }, 'DROPPED'],
    ['to a DHCPv6 server', { ...DNS, ip: 'fd00::1', port: 547 }, 'EXCLUDED'],
    ['of one that comes', { ...OTHER, direction: 'inbound' as const }, 'EXCLUDED'],
  ])('where what is not TCP is dropped: %s', (_name, flow, outcome) => {
    for (const named of [datagrams, undefined]) {
      const parts = { ...of({ dropOther: true, datagrams: named }), openUdpPorts: [123] };
      const without = outcome === 'INTERCEPTED' ? 'DROPPED' : outcome;
      expect(told(parts, flow).outcome).toBe(named === undefined ? without : outcome);
    }
  });

  it('is to pass where nobody listens and failure is open, unless what is not TCP is dropped', () => {
    const open = (plan: Parameters<typeof routed>[1]) => ({
      decision: { ...of(plan).decision, failure: 'open' as const },
      hasListener: () => false,
    });
    expect(told({ ...of({}), hasListener: () => false }, DNS).outcome).toBe('RESET');
    expect(told(open({}), DNS).outcome).toBe('PASSED');
    expect(told(open({ dropOther: true }), DNS).outcome).toBe('DROPPED');
  });
});
