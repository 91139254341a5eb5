/** IPv4 and IPv6 as the field calls them. */

export type Family = 4 | 6;

export const FAMILIES: readonly Family[] = [4, 6];

/** AF_INET and AF_INET6 of Linux: socket(2). */
export const AF: Readonly<Record<Family, number>> = { 4: 2, 6: 10 };

/** Of canonical text. */
export function familyOf(ip: string): Family {
  return ip.includes(':') ? 6 : 4;
}
