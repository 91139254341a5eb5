/** Panels with their series, as a page that Chromium makes a picture of. Grafana draws them its own way. */

import type { Panel } from './dashboard.js';
import type { Range, Series } from './prometheus.js';

export interface Named extends Series {
  readonly name: string;
}

export interface Drawn {
  readonly panel: Panel;
  readonly series: readonly Named[];
}

const WIDTH = 456;
const HEIGHT = 130;
const LEFT = 58;
const MIB = 2 ** 20;
const COLOURS = [
  '#4c9f50',
  '#d9a400',
  '#3d7fc4',
  '#d9662b',
  '#c4414c',
  '#8f5bb5',
  '#2a9d8f',
  '#8a8a8a',
  '#b3782f',
];

const UNITS: Readonly<Record<string, (value: number) => string>> = {
  short: (value) => plain(value),
  s: (value) =>
    value < 0.001 ? `${plain(value * 1e6)} µs` : value < 1 ? `${plain(value * 1e3)} ms` : `${plain(value)} s`,
  ops: (value) => `${plain(value)}/s`,
  pps: (value) => `${plain(value)} p/s`,
  bytes: (value) => `${plain(value / MIB)} MiB`,
};

export function page(title: string, drawn: readonly Drawn[], range: Range): string {
  const panels = drawn.map((each) => `<section>${figure(each, range)}</section>`).join('\n');
  return `<!doctype html><meta charset="utf-8"><title>${escaped(title)}</title><style>
body { margin: 12px; font: 12px "DejaVu Sans", sans-serif; color: #222; background: #f4f5f5 }
h1 { font-size: 16px; margin: 0 0 8px } h2 { font-size: 12px; margin: 0 0 4px }
main { display: grid; grid-template-columns: repeat(3, 1fr); gap: 8px }
section { background: #fff; border: 1px solid #ddd; padding: 6px }
p { margin: 2px 0 0; font-size: 10px; max-height: 26px; overflow: hidden } i { display: inline-block; width: 9px; height: 3px; margin: 0 3px 3px 8px }
text { font-size: 9px; fill: #666 }
</style><h1>${escaped(title)}</h1><main>${panels}</main>`;
}

function figure({ panel, series }: Drawn, range: Range): string {
  const { unit, min, max, custom } = panel.fieldConfig.defaults;
  const stacked = custom.stacking.mode === 'normal';
  const lines: readonly Line[] = stacked ? stack(series) : series;
  const values = lines.flatMap(({ points }) => points.map(([, value]) => value)).filter(Number.isFinite);
  const low = min ?? Math.min(...values);
  const scale = unit === 'bytes' ? MIB : 1;
  const high = max ?? niceAbove(Math.max(...values, low) / scale) * scale;
  const x = (at: number) => LEFT + ((at - range.from) / (range.to - range.from)) * (WIDTH - LEFT - 4);
  const y = (value: number) => 6 + (1 - (value - low) / (high - low)) * (HEIGHT - 12);
  const label = UNITS[unit] ?? plain;
  const grid = [0, 0.5, 1].map((part) => {
    const value = low + part * (high - low);
    return `<path d="M${LEFT} ${y(value).toFixed(1)}H${WIDTH - 4}" stroke="#e5e5e5"/><text x="${LEFT - 5}" y="${(y(value) + 3).toFixed(1)}" text-anchor="end">${label(value)}</text>`;
  });
  const way = (points: Series['points']) =>
    points
      .filter(([, value]) => Number.isFinite(value))
      .map(([at, value]) => `${x(at).toFixed(1)} ${y(value).toFixed(1)}`);
  const drawn = lines.map(({ points, below }, index) =>
    below === undefined
      ? `<path d="M${way(points).join('L')}" fill="none" stroke="${colour(index)}" stroke-width="1.4"/>`
      : `<path d="M${[...way(points), ...way(below).reverse()].join('L')}Z" fill="${colour(index)}"/>`,
  );
  const none = series.length === 0 ? `<text x="${WIDTH / 2}" y="${HEIGHT / 2}">No data</text>` : '';
  const names = series.map(
    ({ name }, index) => `<i style="background:${colour(index)}"></i>${escaped(name)}`,
  );
  return `<h2>${escaped(panel.title)}</h2><svg width="${WIDTH}" height="${HEIGHT}">${grid.join('')}${drawn.join('')}${none}</svg><p>${names.join('')}</p>`;
}

interface Line {
  readonly points: Series['points'];
  /** Of an area, its lower edge. */
  readonly below?: Series['points'];
}

/** Each on top of those before it. */
function stack(series: readonly Named[]): Line[] {
  const sums = new Map<number, number>();
  return series.map(({ points }) => {
    const finite = points.filter(([, value]) => Number.isFinite(value));
    const below = finite.map(([at]) => [at, sums.get(at) ?? 0] as const);
    for (const [at, value] of finite) {
      sums.set(at, (sums.get(at) ?? 0) + value);
    }
    return { points: finite.map(([at]) => [at, sums.get(at) ?? 0] as const), below };
  });
}

/** 1, 2 or 5 times a power of ten; something above nothing. */
function niceAbove(value: number): number {
  if (value <= 0) {
    return 1;
  }
  const power = 10 ** Math.floor(Math.log10(value));
  return ([1, 2, 5, 10].find((factor) => factor * power >= value * 1.05) ?? 20) * power;
}

function plain(value: number): string {
  return String(Number(value.toPrecision(3)));
}

function colour(index: number): string {
  return COLOURS[index % COLOURS.length] ?? 'black';
}

function escaped(text: string): string {
  return text.replace(/[&<>"]/g, (character) => `&#${character.codePointAt(0)};`);
}
