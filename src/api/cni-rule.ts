/**
 * What the CNI plugin does with pods while no agent runs, in a file beside its socket: the agent decides beforehand, as
 * it would decide then (ADR 9).
 */

import { readFileSync, rmSync } from 'node:fs';
import { isDeepStrictEqual } from 'node:util';
import { z } from 'zod';
import { KeptText } from '../base/kept-text.js';
import type { Log } from '../base/log.js';
import { type InterceptionDefaults, interceptionOf } from '../pods/annotations.js';
import type { Pod } from '../pods/pod.js';

export const CNI_RULE_NAME = 'cni-rule.json';
export const INTERCEPT_KEY = 'nodesentry.io/intercept';
const UNWRITABLE = 'cni: the rule for the time without an agent cannot be written';

/**
 * hold: enrolled, or may well be; it does not start without the agent. wait: only a label that nobody has seen could
 * enrol it; the agent is waited for as long as ever, then it starts. admit: it is not enrolled; it starts at once.
 */
const whileAway = z.enum(['hold', 'wait', 'admit']);
type WhileAway = z.infer<typeof whileAway>;

const words = z.record(z.string(), whileAway);
const ruleSchema = z.strictObject({
  version: z.literal(1),
  enrol: z.enum(['labelled', 'all']),
  /** The key by which a pod speaks for itself, before all else; labels are not told to plugins. */
  annotation: z.string(),
  annotations: words,
  otherAnnotations: whileAway,
  /** By UID: the pods of this node, as they were known last. */
  pods: words,
  /** For pods that are not among them, by namespace; those not named are `others`. */
  namespaces: words,
  others: whileAway,
  /** Where pods of this node were enrolled by a word of their own, as far as the rules that were left tell. */
  selfEnrolling: z.array(z.string()),
});
export type CniRule = z.infer<typeof ruleSchema>;

export interface KnownToAgent extends InterceptionDefaults {
  /** Whose labels and annotations are known. */
  readonly pods: readonly Pod[];
  /** What namespaces say about interception, by name; undefined where no source knows labels before a pod starts. */
  readonly namespaces: ReadonlyMap<string, string | undefined> | undefined;
  readonly selfEnrolling: ReadonlySet<string>;
}

export function cniRule(known: KnownToAgent): CniRule {
  const { enrol, pods } = known;
  const enrolled = new Set(pods.filter((pod) => interceptionOf(pod, known).enrolled));
  return {
    version: 1,
    enrol,
    annotation: INTERCEPT_KEY,
    annotations: { enabled: 'hold', disabled: 'admit' },
    otherAnnotations: enrol === 'all' ? 'hold' : 'admit',
    pods: Object.fromEntries(
      pods.map((pod) => [pod.uid, enrolled.has(pod) ? 'hold' : 'admit'] as const).sort(byKey),
    ),
    ...newPods(known, [...enrolled]),
  };
}

type NewPods = Pick<CniRule, 'namespaces' | 'others' | 'selfEnrolling'>;

function newPods({ enrol, namespaces, selfEnrolling }: KnownToAgent, enrolled: readonly Pod[]): NewPods {
  if (namespaces === undefined) {
    // Without the API server the agent does not know a starting pod's labels either, and goes by its annotations.
    return { namespaces: {}, others: enrol === 'all' ? 'hold' : 'admit', selfEnrolling: [] };
  }
  const enrols = (name: string) =>
    enrol === 'all' ? namespaces.get(name) !== 'disabled' : namespaces.get(name) === 'enabled';
  const own = enrolled.map(({ namespace }) => namespace).filter((name) => !enrols(name));
  const seen = new Set([...selfEnrolling, ...own].filter((name) => namespaces.has(name)));
  const others: WhileAway = enrol === 'all' ? 'hold' : 'wait';
  const words = [...namespaces.keys()]
    .map((name) => [name, enrols(name) || seen.has(name) ? 'hold' : 'wait'] as const)
    .filter(([, word]) => word !== others);
  return { namespaces: Object.fromEntries(words.sort(byKey)), others, selfEnrolling: [...seen].sort() };
}

function byKey([a]: readonly [string, unknown], [b]: readonly [string, unknown]): number {
  return a < b ? -1 : 1;
}

export interface CniRuleFileOptions {
  /** Such as /run/nodesentry/cni-rule.json; the same in each. */
  readonly paths: readonly string[];
  readonly enrol: InterceptionDefaults['enrol'];
  /**
   * Undefined as long as the sources have not all told what they know: what was left before still holds. The same `pods`
   * again as long as none of them has changed.
   */
  readonly known: () => Omit<KnownToAgent, 'selfEnrolling'> | undefined;
  readonly log: Pick<Log, 'warn'>;
}

export class CniRuleFile {
  readonly #known: CniRuleFileOptions['known'];
  readonly #texts: readonly KeptText[];
  #selfEnrolling: ReadonlySet<string>;
  #written: (Pick<KnownToAgent, 'pods' | 'namespaces'> & { readonly text: string }) | undefined;

  /** A rule that was made for another configuration, or cannot be read, is taken away: every pod waits then. */
  constructor({ paths, enrol, known, log }: CniRuleFileOptions) {
    const left = paths.map((path) => ({ path, rule: readRule(path) }));
    for (const { path } of left.filter(({ rule }) => rule?.enrol !== enrol)) {
      rmSync(path, { force: true });
    }
    this.#known = known;
    this.#texts = paths.map((path) => new KeptText(path, UNWRITABLE, log));
    this.#selfEnrolling = new Set(left.flatMap(({ rule }) => rule?.selfEnrolling ?? []));
  }

  /** Writes what has changed. Never throws: an old rule is better than no agent, and the log says so. */
  refresh(): void {
    const known = this.#known();
    if (known === undefined) {
      return;
    }
    if (
      this.#written?.pods !== known.pods ||
      !isDeepStrictEqual(this.#written.namespaces, known.namespaces)
    ) {
      const rule = cniRule({ ...known, selfEnrolling: this.#selfEnrolling });
      this.#selfEnrolling = new Set(rule.selfEnrolling);
      this.#written = { ...known, text: JSON.stringify(rule) };
    }
    for (const text of this.#texts) {
      text.write(this.#written.text);
    }
  }
}

function readRule(path: string): CniRule | undefined {
  try {
    return ruleSchema.safeParse(JSON.parse(readFileSync(path, 'utf8'))).data;
  } catch {
    return undefined;
  }
}
