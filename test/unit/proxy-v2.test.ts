import { expect, test } from 'vitest';
import { DEFAULT_TYPES, proxyV2Header } from '../../src/proxy/proxy-v2.js';

const SENDER = { spiffeId: 'spiffe://a/b', namespace: 'ns', podName: 'p' };
const SIGNATURE = '0d0a0d0a000d0a515549540a';
const hex = (text: string) => Buffer.from(text).toString('hex');

test('IPv4: addresses and ports, then the SPIFFE ID and the pod', () => {
  const header = proxyV2Header(
    { ip: '10.66.0.3', port: 41_886 },
    { ip: '10.200.1.1', port: 80 },
    SENDER,
    DEFAULT_TYPES,
  );
  expect(header.toString('hex')).toBe(
    `${SIGNATURE}21110022` +
      `0a420003` +
      `0ac80101` +
      `a39e0050` +
      `e0000c${hex('spiffe://a/b')}` +
      `e10004${hex('ns/p')}`,
  );
});

test('IPv6, with other types', () => {
  const [src, dst] = [
    { ip: 'fd00:66::3', port: 1 },
    { ip: 'fd00::1', port: 65_535 },
  ];
  expect(proxyV2Header(src, dst, SENDER, { id: 0x05, pod: 0xef }).toString('hex')).toBe(
    `${SIGNATURE}2121003a` +
      `fd000066000000000000000000000003` +
      `fd000000000000000000000000000001` +
      `0001ffff` +
      `05000c${hex('spiffe://a/b')}` +
      `ef0004${hex('ns/p')}`,
  );
});

test('of a sender that nobody knows there is nothing but the addresses', () => {
  const [src, dst] = [
    { ip: '10.66.0.3', port: 1 },
    { ip: '10.0.0.1', port: 2 },
  ];
  expect(proxyV2Header(src, dst, undefined, DEFAULT_TYPES).toString('hex')).toBe(
    `${SIGNATURE}2111000c0a4200030a00000100010002`,
  );
});

test('a long SPIFFE ID is told whole, and ends of two families are refused', () => {
  const [src, dst] = [
    { ip: '10.66.0.3', port: 1 },
    { ip: '10.0.0.1', port: 2 },
  ];
  const spiffeId = `spiffe://${'a'.repeat(600)}`;
  const header = proxyV2Header(src, dst, { ...SENDER, spiffeId }, DEFAULT_TYPES);
  expect(header.readUInt16BE(14)).toBe(header.length - 16);
  expect(header.includes(spiffeId)).toBe(true);
  expect(() => proxyV2Header(src, { ip: 'fd00::1', port: 2 }, SENDER, DEFAULT_TYPES)).toThrow(RangeError);
});
