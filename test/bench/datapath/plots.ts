/** Plots as SVG, drawn by echarts without a browser: bars in groups, each with its spread. */

import { type CustomSeriesOption, type EChartsOption, init } from 'echarts';
import type { Summary } from './statistics.js';

const [WIDTH, HEIGHT] = [960, 420] as const;
const GAPS = { barGap: '10%', barCategoryGap: '24%' } as const;
/** Told apart by those who see no colours too (Okabe and Ito), and none for the first: it is what others are compared with. */
const COLOURS = ['#999999', '#e69f00', '#0072b2', '#56b4e9', '#d55e00', '#cc79a7', '#009e73'] as const;

export interface Bars {
  readonly title: string;
  /** Of the axis. */
  readonly unit: string;
  readonly groups: readonly string[];
  readonly series: readonly {
    readonly name: string;
    /** One for each group; undefined where there is none. */
    readonly values: readonly (Summary | undefined)[];
  }[];
  /** A line across: what all are compared with. */
  readonly line?: number;
}

/** A whisker from the least to the most, in the middle of its bar. */
function whiskers(
  values: readonly (Summary | undefined)[],
  index: number,
  count: number,
): CustomSeriesOption {
  return {
    type: 'custom',
    silent: true,
    z: 10,
    data: values.flatMap((value, group) =>
      value === undefined || Number.isNaN(value.median) ? [] : [[group, value.min, value.max]],
    ),
    renderItem: (_params, api) => {
      const layout = api.barLayout?.({ ...GAPS, count })?.[index];
      const [x = 0, top = 0] = api.coord([api.value(0), api.value(2)]);
      const [, bottom = 0] = api.coord([api.value(0), api.value(1)]);
      const middle = x + (layout?.offsetCenter ?? 0);
      const arm = (layout?.width ?? 0) / 5;
      const line = (x1: number, y1: number, x2: number, y2: number) => ({
        type: 'line' as const,
        shape: { x1, y1, x2, y2 },
        style: { stroke: '#222', lineWidth: 1 },
      });
      return {
        type: 'group',
        children: [
          line(middle, top, middle, bottom),
          line(middle - arm, top, middle + arm, top),
          line(middle - arm, bottom, middle + arm, bottom),
        ],
      };
    },
  };
}

/** Room for the longest whisker, to two digits. */
function top(series: Bars['series']): number {
  const most = Math.max(...series.flatMap(({ values }) => values.map((value) => value?.max ?? 0)), 0.1);
  const step = 10 ** (Math.floor(Math.log10(most)) - 1);
  return Number((Math.ceil(most / step) * step).toPrecision(2));
}

export function drawBars({ title, unit, groups, series, line }: Bars): string {
  const chart = init(null, null, { renderer: 'svg', ssr: true, width: WIDTH, height: HEIGHT });
  const option: EChartsOption = {
    animation: false,
    backgroundColor: '#ffffff',
    textStyle: { fontFamily: 'sans-serif' },
    title: { text: title, left: 'center', top: 8, textStyle: { fontSize: 16 } },
    // Without a browser, text is measured roughly.
    legend: { bottom: 8, itemGap: 28, data: series.map(({ name }) => name) },
    grid: { left: 70, right: 24, top: 56, bottom: 84 },
    xAxis: { type: 'category', data: [...groups] },
    yAxis: { type: 'value', name: unit, min: 0, max: top(series) },
    series: [
      ...series.map(({ name, values }, index) => ({
        type: 'bar' as const,
        name,
        ...GAPS,
        itemStyle: { color: COLOURS[index % COLOURS.length] as string },
        data: values.map((value) => (value === undefined || Number.isNaN(value.median) ? '-' : value.median)),
        ...(index === 0 && line !== undefined
          ? {
              markLine: {
                silent: true,
                symbol: 'none',
                label: { show: false },
                lineStyle: { color: '#222', type: 'dashed' as const },
                data: [{ yAxis: line }],
              },
            }
          : {}),
      })),
      ...series.map(({ values }, index) => whiskers(values, index, series.length)),
    ],
  };
  chart.setOption(option);
  const svg = chart.renderToSVGString();
  chart.dispose();
  return svg;
}
