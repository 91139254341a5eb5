/** Packet marks as `ip rule`, iptables and nft write them: a value under a mask. */

export interface Mark {
  readonly value: number;
  /** Of our own mark: contains every bit of `value`. */
  readonly mask: number;
}

const ALL_BITS = 0xffff_ffff;
const MARK = /^(0x[0-9a-fA-F]{1,8}|\d{1,10})(?:\/(0x[0-9a-fA-F]{1,8}|\d{1,10}))?$/;
/** What `parseMark` reads, with the mask that our own mark must have. */
export const MASKED_MARK = /^(0x[0-9a-fA-F]{1,8}|\d{1,10})\/(0x[0-9a-fA-F]{1,8}|\d{1,10})$/;

/** `0x40/0x40` or `64`, whose mask is all bits; undefined for anything else. */
export function parseMark(text: string): Mark | undefined {
  const [, value, mask] = MARK.exec(text) ?? [];
  const mark = { value: Number(value), mask: mask === undefined ? ALL_BITS : Number(mask) };
  return value === undefined || mark.value > ALL_BITS || mark.mask > ALL_BITS ? undefined : mark;
}

/** As in `0x40/0x40`. */
export function formatMark({ value, mask }: Mark): string {
  return `${hex(value)}/${hex(mask)}`;
}

/** As in `0x40`; of 32 bits, unsigned. */
export function hex(value: number): string {
  return `0x${(value >>> 0).toString(16)}`;
}
