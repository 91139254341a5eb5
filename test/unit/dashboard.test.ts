/** The dashboard of deploy/grafana asks for nothing that the agent does not tell, and leaves nothing out unsaid. */

import { readFileSync } from 'node:fs';
import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import { Metrics } from '../../src/telemetry/metrics.js';
import { panelsOf, readDashboard, selectorsOf, substituted } from '../dashboard/dashboard.js';
import { identityParts, pod } from './api-fixture.js';

/** Metrics of the agent that no panel shows, and why. */
const LEFT_OUT: Readonly<Record<string, string>> = Object.fromEntries(
  ['pods', 'sockets_total', 'messages_total', 'bytes_total'].map((name) => [
    `nodesentry_splice_${name}`,
    'of the few pods that ask for it',
  ]),
);

/** What a scrape adds (docs/metrics.md). */
const TARGET_LABELS = ['node'];

const dashboard = readDashboard();
const panels = panelsOf(dashboard);
const targets = panels.flatMap((panel) => panel.targets.map((target) => ({ title: panel.title, ...target })));
const selectors = targets.flatMap(({ title, expr }) =>
  selectorsOf(substituted(expr, '1m')).map((selector) => ({ title, ...selector })),
);

/** Series of the real registry to their labels; and the metrics that they belong to. */
const series = new Map<string, Set<string>>();
const families = new Set<string>();
let metrics: Metrics;

beforeAll(async () => {
  const { store, datapath } = identityParts({ synced: true, blockers: [], nowMs: 0 });
  const stats = { lastEventAtMs: Date.now(), relists: 0, watchRestarts: { stalled: 1 } };
  datapath.late = 0;
  store.replaceSource('static', [pod('web-0')]);
  datapath.packets = [
    { endpointId: 1, podUid: pod('web-0').uid, direction: 'EGRESS', packets: { FLOW_STARTED: 4 } },
  ];
  datapath.listening = [
    {
      instance: 'default',
      direction: 'outbound',
      family: 4,
      address: '127.0.0.1:15001',
      adopted: true,
      sockets: { all: 1, transparent: 1 },
    },
  ];
  metrics = new Metrics({ store, datapath, sources: [{ name: 'kubernetes', stats }], version: '1' });
  metrics.observeResolve('DATAPATH_RECORDED', 0.001);
  metrics.observeCniAdd('INTERCEPTED', 0.01);
  for (const line of (await metrics.text()).split('\n')) {
    const [, family] = /^# TYPE (\w+) /.exec(line) ?? [];
    if (family !== undefined) {
      families.add(family);
    }
    const [, name, labels = ''] = /^(\w+)(?:\{(.*)\})? \S+$/.exec(line) ?? [];
    if (name !== undefined) {
      series.set(name, new Set([...labels.matchAll(/(\w+)="/g)].map(([, label = '']) => label)));
    }
  }
});

afterAll(() => metrics.close());

const familyOf = (name: string) => (families.has(name) ? name : name.replace(/_(?:bucket|sum|count)$/, ''));

describe('a query', () => {
  test('asks for what the agent tells, by labels that it has there', () => {
    expect(selectors.length).toBeGreaterThan(20);
    const wrong = selectors.flatMap(({ title, metric, labels }) => {
      const known = series.get(metric);
      return known === undefined
        ? [`${title}: there is no ${metric}`]
        : labels
            .filter((label) => !known.has(label) && !TARGET_LABELS.includes(label))
            .map((label) => `${title}: ${metric} has no label ${label}`);
    });
    expect(wrong).toEqual([]);
  });

  test('names verdicts that the programs have', () => {
    const named = targets.flatMap(({ expr }) =>
      [...expr.matchAll(/verdict=~?"([\w|]+)"/g)].flatMap(([, names = '']) => names.split('|')),
    );
    const layout = readFileSync('bpf/include/layout.h', 'utf8');
    expect(named.length).toBeGreaterThan(5);
    expect(named.filter((name) => !new RegExp(`\\bVERDICT_${name}\\b`).test(layout))).toEqual([]);
  });

  test('is told apart by labels that are left of it', () => {
    const wrong = targets.flatMap(({ title, expr, legendFormat }) => {
      const grouped = /\bby \(([\w, ]+)\)/.exec(expr)?.[1]?.split(', ') ?? [];
      return [...legendFormat.matchAll(/\{\{(\w+)\}\}/g)]
        .filter(([, label = '']) => !grouped.includes(label))
        .map(([, label]) => `${title}: ${label}`);
    });
    expect(wrong).toEqual([]);
  });

  test('is of the nodes that are chosen', () => {
    expect(selectors.filter(({ labels }) => !labels.includes('node'))).toEqual([]);
  });

  test('that is none is refused', () => {
    expect(() => selectorsOf('sum(rate(nodesentry_packets_total[1m])')).toThrow(SyntaxError);
    expect(selectorsOf('sum by (le) (rate(a_bucket{b="c", d=~"e"}[5m])) / f')).toEqual([
      { metric: 'a_bucket', labels: ['b', 'd'] },
      { metric: 'f', labels: [] },
    ]);
  });
});

test('every metric of the agent is in a panel, or left out for a reason', () => {
  const shown = new Set(selectors.map(({ metric }) => familyOf(metric)));
  expect(families.size).toBeGreaterThan(15);
  expect([...families].filter((name) => !shown.has(name) && LEFT_OUT[name] === undefined)).toEqual([]);
  expect(Object.keys(LEFT_OUT).filter((name) => !families.has(name) || shown.has(name))).toEqual([]);
});

test('every panel says what it shows, in which unit, and stands in a place of its own', () => {
  const ids = dashboard.panels.map(({ id }) => id);
  expect(new Set(ids).size).toBe(ids.length);
  const places = dashboard.panels.map(({ gridPos: { x, y } }) => `${x}/${y}`);
  expect(new Set(places).size).toBe(places.length);
  for (const { title, description, fieldConfig, targets: asked, gridPos, datasource } of panels) {
    expect([title, description, fieldConfig.defaults.unit]).toEqual(
      Array(3).fill(expect.stringMatching(/\S/)),
    );
    expect([title, new Set(asked.map(({ refId }) => refId)).size]).toEqual([title, asked.length]);
    expect(asked.length).toBeGreaterThan(0);
    expect(gridPos.x + gridPos.w).toBeLessThanOrEqual(24);
    expect(datasource.uid).toBe('$' + '{datasource}');
  }
});

test('data source, node and instance can be chosen, of those that there are', () => {
  const variables = dashboard.templating.list;
  expect(variables.map(({ name }) => name)).toEqual(['datasource', 'node', 'instance']);
  for (const { definition = '' } of variables.slice(1)) {
    const [, selector = '', label = ''] = /^label_values\((.+), (\w+)\)$/.exec(definition) ?? [];
    const [read] = selectorsOf(substituted(selector, '1m'));
    expect([...(series.get(read?.metric ?? '') ?? []), ...TARGET_LABELS]).toContain(label);
  }
});

test('the documentation has every metric, and no other', () => {
  const rows = readFileSync('docs/metrics.md', 'utf8').matchAll(/^\| (`nodesentry_.*?) \|/gm);
  const documented = [...rows].flatMap(([, names = '']) =>
    [...names.matchAll(/`(\w+)`/g)].map(([, name]) => name),
  );
  expect(documented.sort()).toEqual([...families].sort());
});
