/** Debian's Prometheus in a lab's node, scraping one agent every second as docs/metrics.md says. */

import { writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { stringify } from 'yaml';
import { type Daemon, runIn } from '../lab/exec.js';
import type { Lab } from '../lab/lab.js';

export interface Series {
  readonly labels: Readonly<Record<string, string>>;
  /** Unix seconds and value, in order of time. */
  readonly points: readonly (readonly [number, number])[];
}

export interface Range {
  /** Unix seconds. */
  readonly from: number;
  readonly to: number;
}

interface Answer {
  readonly data: {
    readonly result: readonly {
      readonly metric: Readonly<Record<string, string>>;
      readonly values: readonly (readonly [number, string])[];
    }[];
  };
}

const ADDRESS = '127.0.0.1:9090';

export class Prometheus {
  readonly #netns: string;

  private constructor(netns: string) {
    this.#netns = netns;
  }

  /** `target` is the agent's address in the node. */
  static async start(lab: Lab, target: string): Promise<Prometheus> {
    const config = join(lab.directory, 'prometheus.yml');
    writeFileSync(
      config,
      stringify({
        global: { scrape_interval: '1s' },
        scrape_configs: [
          {
            job_name: 'nodesentry',
            honor_labels: true,
            static_configs: [{ targets: [target], labels: { node: 'node-a' } }],
          },
        ],
      }),
    );
    const daemon: Daemon = lab.daemon(lab.node, 'prometheus', 'prometheus', [
      `--config.file=${config}`,
      `--storage.tsdb.path=${join(lab.directory, 'tsdb')}`,
      `--web.listen-address=${ADDRESS}`,
    ]);
    await daemon.logged(/Server is ready/);
    return new Prometheus(lab.node);
  }

  /** The series of an expression, second by second. Rejects where Prometheus does not understand it. */
  async range(query: string, { from, to }: Range): Promise<Series[]> {
    const parameters = Object.entries({ query, start: from, end: to, step: 1 }).flatMap(([name, value]) => [
      '--data-urlencode',
      `${name}=${value}`,
    ]);
    const url = `http://${ADDRESS}/api/v1/query_range`;
    const text = await runIn(this.#netns, 'curl', ['-sS', '--fail-with-body', ...parameters, url]);
    return (JSON.parse(text) as Answer).data.result.map(({ metric, values }) => ({
      labels: metric,
      points: values.map(([at, value]) => [at, Number(value)] as const),
    }));
  }
}
