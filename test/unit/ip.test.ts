import { describe, expect, it } from 'vitest';
import { bytesToIp, ipToBytes, ipToNetworkBytes, parseIp, parsePrefix } from '../../src/net/ip.js';
import { formatSocketAddress, parseSocketAddress } from '../../src/net/socket-address.js';

describe('parseIp', () => {
  it.each([
    ['10.66.0.3', '10.66.0.3'],
    ['FD00:66:0:0:0:0:0:3', 'fd00:66::3'],
    ['::', '::'],
    ['::1', '::1'],
    ['1::', '1::'],
    ['2001:db8:0:1:1:1:1:1', '2001:db8:0:1:1:1:1:1'],
    ['2001:0:0:1:0:0:0:1', '2001:0:0:1::1'],
    ['2001:db8:0:0:1:0:0:1', '2001:db8::1:0:0:1'],
    ['::ffff:10.0.0.1', '10.0.0.1'],
    ['::ffff:a00:1', '10.0.0.1'],
    ['64:ff9b::192.0.2.33', '64:ff9b::c000:221'],
    ['::1.2.3.4', '::102:304'],
    ['0:0:0:0:0:ffff:1.2.3.4', '1.2.3.4'],
  ])('writes %s as %s', (text, canonical) => {
    expect(parseIp(text)).toBe(canonical);
  });

  it.each([
    '',
    '10.0.0',
    '10.0.0.256',
    '0x7f.1',
    '167772161',
    '010.0.0.1',
    '10.0.0.1/32',
    ' 10.0.0.1',
    'fe80::1%eth0',
    '[::1]',
    ':::',
    'x',
  ])('refuses %j', (text) => {
    expect(parseIp(text)).toBeUndefined();
  });
});

describe('bytes', () => {
  it('hold IPv4 in its mapped form', () => {
    expect(Buffer.from(ipToBytes('10.66.0.3')).toString('hex')).toBe('00000000000000000000ffff0a420003');
    expect(bytesToIp(ipToBytes('10.66.0.3'))).toBe('10.66.0.3');
  });

  it('go to text and back for every placing of zeros', () => {
    for (let mask = 0; mask < 256; mask += 1) {
      const words = Array.from({ length: 8 }, (_, bit) => (mask & (1 << bit) ? '0' : 'a1'));
      const text = parseIp(words.join(':'));
      expect(text).toBe(new URL(`http://[${words.join(':')}]`).hostname.slice(1, -1));
      expect(bytesToIp(ipToBytes(text ?? ''))).toBe(text);
    }
  });

  it('of a view into a larger buffer are read in place', () => {
    const buffer = Buffer.concat([Buffer.alloc(3, 0xff), ipToBytes('fd00::7')]);
    expect(bytesToIp(buffer.subarray(3))).toBe('fd00::7');
  });

  it('of the network are those of the family', () => {
    expect([...ipToNetworkBytes('10.66.0.3')]).toEqual([10, 66, 0, 3]);
    expect(Buffer.from(ipToNetworkBytes('fd00::7')).toString('hex')).toBe('fd000000000000000000000000000007');
  });

  it('of a wrong length or text are refused', () => {
    expect(() => ipToBytes('web-0')).toThrow(new RangeError('not an IP address: "web-0"'));
    expect(() => bytesToIp(new Uint8Array(4))).toThrow(new RangeError('an address has 16 bytes, not 4'));
  });
});

describe('prefixes', () => {
  it.each([
    ['10.0.0.0/8', { ip: '10.0.0.0', length: 8 }],
    ['10.66.0.3/32', { ip: '10.66.0.3', length: 32 }],
    ['FD00:0::/128', { ip: 'fd00::', length: 128 }],
    ['::/0', { ip: '::', length: 0 }],
  ])('%s is read', (text, prefix) => {
    expect(parsePrefix(text)).toEqual(prefix);
  });

  it.each(['10.0.0.0', '10.0.0.0/33', '10.0.0.0/', '10.0.0.0/8/8', 'fd00::/129', '10.0.0.0/-1', 'x/8'])(
    '%j is refused',
    (text) => {
      expect(parsePrefix(text)).toBeUndefined();
    },
  );
});

describe('socket addresses', () => {
  it.each([
    ['10.66.0.3:41886', '10.66.0.3', 41886],
    ['[fd00:66:0::3]:80', 'fd00:66::3', 80],
    ['[::ffff:10.0.0.1]:1', '10.0.0.1', 1],
    ['[::]:0', '::', 0],
  ])('%s is read', (text, ip, port) => {
    expect(parseSocketAddress(text)).toEqual({ ip, port });
  });

  it.each([
    '10.0.0.1',
    '10.0.0.1:',
    ':80',
    'fd00::1:80',
    '[10.0.0.1]:80',
    '10.0.0.1:65536',
    '10.0.0.1:080',
    '10.0.0.1:-1',
  ])('%j is refused', (text) => {
    expect(parseSocketAddress(text)).toBeUndefined();
  });

  it('are written with brackets round IPv6', () => {
    expect(formatSocketAddress({ ip: '10.0.0.1', port: 80 })).toBe('10.0.0.1:80');
    expect(formatSocketAddress({ ip: 'fd00::1', port: 80 })).toBe('[fd00::1]:80');
  });
});
