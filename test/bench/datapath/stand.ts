/** Variants that stand together, to be measured in turns. */

import { CLI } from '../../e2e/agent.js';
import { run } from '../../lab/exec.js';
import { Lab } from '../../lab/lab.js';
import type { LabRuntime } from '../../lab/pod.js';
import { crowds } from './crowds.js';
import type { ProxyName } from './proxies.js';
import {
  furnish,
  type Node,
  type Standing,
  standIptables,
  standNftables,
  standOurs,
  standPlain,
  standRedirect,
  type VariantName,
} from './variants.js';

/** Whether this build knows of splice at all. */
export async function knowsSplice(): Promise<boolean> {
  return /\bsplice\b/.test(await run(CLI, ['config', 'schema']));
}

export interface Setting {
  readonly proxy: ProxyName;
  readonly runtime: LabRuntime;
}

/** A sandbox that brings its own network stack has nothing in the pod's namespace that REDIRECT could see. */
function canRun(name: VariantName, runtime: LabRuntime): boolean {
  return name !== 'redirect' || runtime === 'runc';
}

/**
 * All that are wanted, in the order of `VARIANTS`, which is the one they take turns in; `splice` is left out where this
 * build has none. What stands is taken back by `close`, also after a failure half way.
 */
export class Stand {
  readonly #labs: Lab[] = [];
  readonly #standing: Standing[] = [];
  #closed = false;

  get variants(): readonly Standing[] {
    return this.#standing;
  }

  async build({ proxy, runtime }: Setting, wanted: readonly VariantName[]): Promise<void> {
    const splice = (await knowsSplice()) && runtime === 'runc';
    const steps: readonly [readonly VariantName[], (node: Node) => Promise<Standing[]>][] = [
      [['explicit', 'direct'], (node) => standPlain(node, proxy)],
      [
        ['ours'],
        async (node) => [
          await standOurs(node, proxy, { name: 'ours', splice: (await knowsSplice()) ? false : undefined }),
        ],
      ],
      [
        splice ? ['splice'] : [],
        async (node) => [await standOurs(node, proxy, { name: 'splice', splice: true })],
      ],
      [['iptables-tproxy'], (node) => standIptables(node, proxy)],
      [['nftables-tproxy'], (node) => standNftables(node, proxy)],
      [['redirect'], (node) => standRedirect(node, proxy)],
    ];
    for (const [names, step] of steps) {
      if (names.some((name) => wanted.includes(name) && canRun(name, runtime))) {
        const standing = await this.#add((lab) => furnish(lab, runtime).then(step));
        this.#standing.push(...standing.filter(({ name }) => wanted.includes(name)));
      }
    }
    for (const crowd of crowds(wanted)) {
      this.#standing.push(
        ...(await this.#add(async (lab) => [await crowd(await furnish(lab, runtime), proxy)])),
      );
    }
  }

  /** On a node of its own, put to sleep. */
  async #add(stand: (lab: Lab) => Promise<Standing[]>): Promise<Standing[]> {
    const lab = await Lab.create();
    this.#labs.push(lab);
    if (this.#closed) {
      throw new Error('ended meanwhile');
    }
    const standing = await stand(lab);
    for (const variant of standing) {
      variant.sleep();
    }
    return standing;
  }

  async close(): Promise<void> {
    this.#closed = true;
    for (const lab of this.#labs.splice(0)) {
      await lab.close();
    }
  }
}
