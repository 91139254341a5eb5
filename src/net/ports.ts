/** Lists of ports as text: `80,8000-8080`. */

/** Both ends are of it. */
export interface PortRange {
  readonly from: number;
  readonly to: number;
}

export const PORTS_EXPECTED = 'all, none or ports from 1 to 65535 such as 80,8000-8080';

/** Every port that a packet can bear. */
export const ALL_PORTS: readonly PortRange[] = [{ from: 0, to: 65_535 }];

/** `all`, `none`, or ports and ranges between commas; undefined for anything else. */
export function parsePorts(text: string): readonly PortRange[] | undefined {
  if (text === 'all') {
    return ALL_PORTS;
  }
  return text === 'none' ? [] : parsePortList(text);
}

/** Ports and ranges between commas, at least one; undefined for anything else. */
export function parsePortList(text: string): readonly PortRange[] | undefined {
  const ranges = text.split(',').map((part) => {
    const [from = '', to = from, ...rest] = part.trim().split('-');
    return rest.length === 0 && isPort(from) && isPort(to) && Number(from) <= Number(to)
      ? { from: Number(from), to: Number(to) }
      : undefined;
  });
  return ranges.every((range) => range !== undefined) ? ranges : undefined;
}

/** As `parsePorts` reads it. */
export function formatPorts(ranges: readonly PortRange[]): string {
  if (ranges === ALL_PORTS) {
    return 'all';
  }
  const texts = ranges.map(({ from, to }) => (from === to ? String(from) : `${from}-${to}`));
  return texts.length === 0 ? 'none' : texts.join(',');
}

export function hasPort(ranges: readonly PortRange[], port: number): boolean {
  return ranges.some(({ from, to }) => from <= port && port <= to);
}

function isPort(text: string): boolean {
  return /^\d{1,5}$/.test(text) && Number(text) >= 1 && Number(text) <= 65_535;
}
