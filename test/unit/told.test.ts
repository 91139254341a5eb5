import { describe, expect, it } from 'vitest';
import { Told } from '../../src/identity/told.js';
import { namesIn } from '../../src/proxy/names.js';
import { uid } from './api-fixture.js';

const WEB = uid('web');
const FLOW = {
  protocol: 'tcp',
  src: { ip: '10.66.0.3', port: 41_886 },
  dst: { ip: '10.199.0.1', port: 3_128 },
  startedMs: 1_000_000,
} as const;

function start(limits: { namesOfPod?: number; names?: number; flows?: number } = {}) {
  const clock = { nowMs: 1_000_000 };
  const told = new Told({ ...limits, nowMs: () => clock.nowMs });
  return { told, clock, name: (ip: string) => told.nameOf(WEB, ip, clock.nowMs) };
}

const answer = (name: string, ip: string, ttlSeconds = 60) => ({ name, ip, ttlSeconds });

describe('names that a pod has looked up', () => {
  it('are known for as long as the answer was good, and a moment more', () => {
    const { told, clock, name } = start();
    told.lookedUp(WEB, [answer('shop.example', '203.0.113.9')]);
    expect(name('203.0.113.9')).toBe('shop.example');
    expect(name('203.0.113.8')).toBeUndefined();
    expect(told.nameOf(uid('other'), '203.0.113.9', clock.nowMs)).toBeUndefined();
    clock.nowMs += 64_000;
    expect(name('203.0.113.9')).toBe('shop.example');
    clock.nowMs += 2_000;
    expect(name('203.0.113.9')).toBeUndefined();
    // Of a flow that began in time it is told later on, too.
    expect(told.nameOf(WEB, '203.0.113.9', 1_010_000)).toBe('shop.example');
    expect(told.nameOf(WEB, '203.0.113.9', 990_000)).toBeUndefined();
  });

  it('of one address the last that was asked for counts, and one that is asked for again goes on', () => {
    const { told, clock, name } = start();
    told.lookedUp(WEB, [answer('a.example', '203.0.113.9')]);
    told.lookedUp(WEB, [answer('b.example', '203.0.113.9', 5)]);
    expect(name('203.0.113.9')).toBe('b.example');
    clock.nowMs += 30_000;
    expect(name('203.0.113.9')).toBe('a.example');
    told.lookedUp(WEB, [answer('a.example', '203.0.113.9')]);
    clock.nowMs += 60_000;
    expect(name('203.0.113.9')).toBe('a.example');
    expect(told.nameOf(WEB, '203.0.113.9', 1_020_000)).toBe('a.example');
  });

  it('are bounded, of each pod and of all: the oldest go', () => {
    const { told, name } = start({ namesOfPod: 2, names: 4 });
    told.lookedUp(
      WEB,
      ['1', '2', '3'].map((n) => answer(`${n}.example`, `203.0.113.${n}`)),
    );
    expect(['1', '2', '3'].map((n) => name(`203.0.113.${n}`))).toEqual([undefined, '2.example', '3.example']);
    for (const other of ['b', 'c']) {
      told.lookedUp(uid(other), [answer('x.example', '10.0.0.1'), answer('y.example', '10.0.0.2')]);
    }
    expect(name('203.0.113.3')).toBeUndefined();
    expect(told.nameOf(uid('c'), '10.0.0.2', 1_000_000)).toBe('y.example');
  });
});

describe('where a pod has asked its proxy to go', () => {
  it('is of that very flow, not of a later one between the same ends', () => {
    const { told } = start({ flows: 1 });
    told.asks(FLOW, 'shop.example:443');
    expect(told.askedBy({ ...FLOW, startedMs: FLOW.startedMs + 3 })).toBe('shop.example:443');
    expect(told.askedBy({ ...FLOW, startedMs: FLOW.startedMs + 60_000 })).toBeUndefined();
    expect(told.askedBy({ ...FLOW, protocol: 'udp' })).toBeUndefined();
    told.asks({ ...FLOW, src: { ip: '10.66.0.4', port: 1 } }, 'b.example:80');
    expect(told.askedBy(FLOW)).toBeUndefined();
  });
});

describe('an answer of DNS', () => {
  const HEADER = '4e53 8180 0001 0002 0000 0000';
  const QUESTION = '04 73686f70 07 6578616d706c65 00 0001 0001'; // shop.example A
  const ALIAS = 'c00c 0005 0001 0000001e 0006 03 777777 c011'; // CNAME www.example, 30 s
  const ADDRESS = 'c02a 0001 0001 0000003c 0004 cb007109'; // www.example A, 60 s
  const bytes = (...parts: string[]) => Buffer.from(parts.join('').replaceAll(' ', ''), 'hex');

  it('names its addresses as they were asked for, for as long as all of it is good', () => {
    expect(namesIn(bytes(HEADER, QUESTION, ALIAS, ADDRESS))).toEqual([
      { name: 'shop.example', ip: '203.0.113.9', ttlSeconds: 30 },
    ]);
  });

  it('is nothing where it is a question, or cannot be read', () => {
    expect(namesIn(bytes('4e53 0100 0001 0000 0000 0000', QUESTION))).toEqual([]);
    const whole = bytes(HEADER, QUESTION, ALIAS, ADDRESS);
    for (let length = 0; length < whole.length; length++) {
      expect(namesIn(whole.subarray(0, length))).toEqual([]);
    }
  });
});
