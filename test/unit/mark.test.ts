import { expect, it } from 'vitest';
import { formatMark, parseMark } from '../../src/net/mark.js';

it.each([
  ['0x40/0x40', { value: 0x40, mask: 0x40 }],
  ['64/0xF0', { value: 64, mask: 0xf0 }],
  ['0xca6c', { value: 0xca6c, mask: 0xffff_ffff }],
  ['4294967295/0', { value: 0xffff_ffff, mask: 0 }],
])('%s is read', (text, mark) => {
  expect(parseMark(text)).toEqual(mark);
});

it.each(['', '0x', '0x40/', '/0x40', '-1', '4294967296', '1/4294967296', '0x40/0x40/0x40', '0x1g'])(
  '%j is refused',
  (text) => {
    expect(parseMark(text)).toBeUndefined();
  },
);

it('is written in hexadecimal, the highest bit as well', () => {
  expect(formatMark({ value: 0x8000_0000 | 0, mask: 0xffff_ffff })).toBe('0x80000000/0xffffffff');
});
