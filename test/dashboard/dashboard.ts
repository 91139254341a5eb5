/** deploy/grafana as the tests read it, and its queries as Grafana would send them. */

import { readFileSync } from 'node:fs';
import { join } from 'node:path';
import { parser } from '@prometheus-io/lezer-promql';

export interface Target {
  readonly refId: string;
  readonly expr: string;
  readonly legendFormat: string;
}

export interface Panel {
  readonly id: number;
  readonly type: string;
  readonly title: string;
  readonly description: string;
  readonly gridPos: { readonly x: number; readonly y: number; readonly w: number; readonly h: number };
  readonly datasource: { readonly uid: string };
  readonly fieldConfig: {
    readonly defaults: {
      readonly unit: string;
      readonly min?: number;
      readonly max?: number;
      readonly custom: { readonly stacking: { readonly mode: 'normal' | 'none' } };
    };
  };
  readonly targets: readonly Target[];
}

export interface Dashboard {
  readonly title: string;
  readonly panels: readonly Panel[];
  readonly templating: {
    readonly list: readonly { readonly name: string; readonly definition?: string }[];
  };
}

const FILE = join(import.meta.dirname, '../../deploy/grafana/nodesentry.json');

export function readDashboard(): Dashboard {
  return JSON.parse(readFileSync(FILE, 'utf8')) as Dashboard;
}

/** Those that show something. */
export function panelsOf({ panels }: Dashboard): readonly Panel[] {
  return panels.filter(({ type }) => type !== 'row');
}

/** For all nodes and instances. */
export function substituted(expr: string, rateInterval: string): string {
  return expr.replaceAll('$__rate_interval', rateInterval).replaceAll(/\$(?:node|instance)\b/g, '.*');
}

export interface Selector {
  readonly metric: string;
  /** That it matches by. */
  readonly labels: readonly string[];
}

/** The series that an expression reads, by the grammar of PromQL. Throws SyntaxError for what is none. */
export function selectorsOf(expr: string): Selector[] {
  const selectors: Selector[] = [];
  parser.parse(expr).iterate({
    enter: ({ node, name, type, from, to }) => {
      if (type.isError) {
        throw new SyntaxError(`${expr}: not understood at ${expr.slice(from, to + 20)}`);
      }
      if (name !== 'VectorSelector') {
        return;
      }
      const text = (of: { from: number; to: number } | null) =>
        of === null ? '' : expr.slice(of.from, of.to);
      const matchers = node.getChild('LabelMatchers')?.getChildren('UnquotedLabelMatcher') ?? [];
      selectors.push({
        metric: text(node.getChild('Identifier')),
        labels: matchers.map((matcher) => text(matcher.getChild('LabelName'))),
      });
    },
  });
  return selectors;
}
