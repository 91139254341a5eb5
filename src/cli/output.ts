/** Text for people: aligned tables, times, counts. */

/** Writes one piece of output, such as a table, and the line end after it. */
export type Print = (text: string) => void;

export const printToStdout: Print = (text) => {
  process.stdout.write(`${text}\n`);
};

/** Indented, for people and for jq alike. */
export function json(value: unknown): string {
  return JSON.stringify(value, null, 2);
}

/** Left-aligned columns two spaces apart; an empty cell shows as `-`. */
export function table(header: readonly string[], rows: readonly (readonly string[])[]): string {
  const lines = [header, ...rows].map((row) =>
    header.map((_, column) => {
      const cell = oneLine(row[column] ?? '');
      return cell === '' ? '-' : cell;
    }),
  );
  const widths = header.map((_, column) => Math.max(...lines.map((line) => line[column]?.length ?? 0)));
  return lines.map((line) => padded(line, widths)).join('\n');
}

/** Cells of one line, each but the last padded to its width. */
export function padded(cells: readonly string[], widths: readonly number[]): string {
  return cells
    .map((cell, column) => cell.padEnd(widths[column] ?? 0))
    .join('  ')
    .trimEnd();
}

/** Names and values, a line each; an empty value shows as `-`. */
export function fields(lines: readonly (readonly [string, string])[]): string {
  return lines
    .map(([name, value]) => `${`${name}:`.padEnd(11)}${value === '' ? '-' : oneLine(value)}`)
    .join('\n');
}

/** What a terminal obeys, or turns round, in a text that somebody else chose must not reach it. */
export function oneLine(text: string): string {
  return text.replace(/[\p{Cc}\p{Cf}\p{Zl}\p{Zp}]+/gu, ' ');
}

/** `14:03:07.250` in local time. */
export function clockTime(unixMs: number): string {
  const date = new Date(unixMs);
  const two = (value: number): string => String(value).padStart(2, '0');
  const ms = String(date.getMilliseconds()).padStart(3, '0');
  return `${two(date.getHours())}:${two(date.getMinutes())}:${two(date.getSeconds())}.${ms}`;
}

/** The two largest units: `2d 3h`, `4m 10s`, `7s`. */
export function duration(ms: number): string {
  const seconds = Math.floor(ms / 1_000);
  const parts = [
    [Math.floor(seconds / 86_400), 'd'],
    [Math.floor(seconds / 3_600) % 24, 'h'],
    [Math.floor(seconds / 60) % 60, 'm'],
    [seconds % 60, 's'],
  ] as const;
  const first = parts.findIndex(([value]) => value > 0);
  return first < 0
    ? '0s'
    : parts
        .slice(first, first + 2)
        .map(([value, unit]) => `${value}${unit}`)
        .join(' ');
}

/** NO stands out in a table. */
export function yesNo(value: boolean): string {
  return value ? 'yes' : 'no';
}
