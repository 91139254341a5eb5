/** Closes in reverse order of opening, also what was opened before a failure half way. */
export class Opened {
  readonly #closers: (() => void | Promise<void>)[] = [];

  add<T>(resource: T, close: (resource: T) => void | Promise<void>): T {
    this.#closers.push(() => close(resource));
    return resource;
  }

  async close(): Promise<void> {
    for (const closer of this.#closers.splice(0).reverse()) {
      await closer();
    }
  }
}
