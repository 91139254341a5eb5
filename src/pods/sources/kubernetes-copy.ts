/** The objects of one resource as last heard of, and which of two that know about one object is believed. */

import type { Log } from '../../base/log.js';
import { firstProblem, type ObjectMeta, objectMetaSchema, type Reading } from './kubernetes-objects.js';

export interface ObjectCopyOptions<T> {
  /** As the API writes it: `pods`. */
  readonly resource: string;
  readonly read: (object: unknown) => Reading<T>;
  readonly log: Log;
}

interface Item<T> {
  readonly meta: ObjectMeta;
  readonly value: T;
}

export class ObjectCopy<T> {
  readonly #options: ObjectCopyOptions<T>;
  #items = new Map<string, Item<T>>();
  #questions = 0;
  /** Objects that went while somebody was asking for one by name. */
  readonly #goneMeanwhile = new Set<string>();
  /** Objects that were asked for by name while a list was under way, which may not have them. */
  readonly #askedMeanwhile = new Set<string>();
  /** What was already logged of an object, so that a relist does not repeat it. */
  readonly #told = new Map<string, string>();

  constructor(options: ObjectCopyOptions<T>) {
    this.#options = options;
  }

  /** The same value as before where nothing was said of the object since. */
  values(): T[] {
    return [...this.#items.values()].map(({ value }) => value);
  }

  /** Takes in what `get` answers, unless the object went meanwhile. */
  async ask(get: () => Promise<unknown>): Promise<T | undefined> {
    this.#questions += 1;
    try {
      const object = await get();
      const meta = this.metaOf(object);
      if (meta === undefined || this.#goneMeanwhile.has(meta.uid)) {
        return undefined;
      }
      this.#askedMeanwhile.add(meta.uid);
      return this.upsert(meta, object);
    } finally {
      this.#questions -= 1;
      if (this.#questions === 0) {
        this.#goneMeanwhile.clear();
      }
    }
  }

  /** Before the first page is asked for. */
  listBegins(): void {
    this.#askedMeanwhile.clear();
  }

  /** Everything there is, from a list as of `listVersion`. Whether anything was otherwise before. */
  replace(objects: readonly unknown[], listVersion: string): boolean {
    const before = this.#items;
    const next = new Map<string, Item<T>>();
    const listed = new Set<string>();
    for (const object of objects) {
      const meta = this.metaOf(object);
      if (meta === undefined) {
        continue;
      }
      listed.add(meta.uid);
      const known = before.get(meta.uid);
      if (known !== undefined && this.#isCurrent(known.meta, meta)) {
        next.set(meta.uid, known);
        continue;
      }
      const value = this.#read(meta, object) ?? known?.value;
      if (value !== undefined) {
        next.set(meta.uid, { meta, value });
      }
    }
    for (const [uid, item] of before) {
      const { resourceVersion } = item.meta;
      if (listed.has(uid)) {
        continue;
      }
      if (this.#askedMeanwhile.has(uid) && isNewer(resourceVersion, listVersion)) {
        // Made after the list: the watch from there on tells of it again, and of its end.
        next.set(uid, item);
      } else {
        this.#noteGone(uid);
      }
    }
    this.#items = next;
    for (const uid of [...this.#told.keys()].filter((key) => !listed.has(key))) {
      this.#told.delete(uid);
    }
    return before.size !== next.size || [...next].some(([uid, item]) => before.get(uid) !== item);
  }

  upsert(meta: ObjectMeta, object: unknown): T | undefined {
    const known = this.#items.get(meta.uid);
    if (known !== undefined && !isNewer(meta.resourceVersion, known.meta.resourceVersion)) {
      return known.value;
    }
    const value = this.#read(meta, object);
    if (value !== undefined) {
      this.#items.set(meta.uid, { meta, value });
    }
    return value;
  }

  remove(uid: string): void {
    this.#noteGone(uid);
    this.#askedMeanwhile.delete(uid);
    this.#told.delete(uid);
    this.#items.delete(uid);
  }

  /** Undefined for an object that cannot be told from others; said once. */
  metaOf(object: unknown): ObjectMeta | undefined {
    const parsed = objectMetaSchema.safeParse(object);
    if (!parsed.success) {
      this.#tell('', firstProblem(parsed.error), {});
      return undefined;
    }
    return parsed.data.metadata;
  }

  /**
   * A list is believed even where its versions are smaller than before: etcd may have been restored from a backup.
   * Only what was asked for by name since the list began can be newer.
   */
  #isCurrent(known: ObjectMeta, listed: ObjectMeta): boolean {
    return (
      known.resourceVersion === listed.resourceVersion ||
      (this.#askedMeanwhile.has(known.uid) && !isNewer(listed.resourceVersion, known.resourceVersion))
    );
  }

  #noteGone(uid: string): void {
    if (this.#questions > 0) {
      this.#goneMeanwhile.add(uid);
    }
  }

  #read(meta: ObjectMeta, object: unknown): T | undefined {
    const { value, problems } = this.#options.read(object);
    if (problems.length > 0) {
      const name = meta.namespace === undefined ? meta.name : `${meta.namespace}/${meta.name}`;
      this.#tell(meta.uid, problems.join('; '), { object: name, taken: value !== undefined });
    } else {
      this.#told.delete(meta.uid);
    }
    return value;
  }

  #tell(uid: string, problem: string, more: object): void {
    if (this.#told.get(uid) === problem) {
      return;
    }
    this.#told.set(uid, problem);
    const { log, resource } = this.#options;
    log.error(
      { resource, problem, ...more },
      'kubernetes: an object has a form that the API does not give it; the others are unaffected',
    );
  }
}

/**
 * Resource versions of one resource are decimal numbers that grow (KEP-5504); where one is not, whatever came last
 * counts as newer.
 */
function isNewer(version: string, than: string): boolean {
  const number = /^\d+$/;
  return !number.test(version) || !number.test(than) || BigInt(version) > BigInt(than);
}
