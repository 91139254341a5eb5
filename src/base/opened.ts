/** What was opened, closed in reverse order: all of it, also after a failure half way, and whatever a closer throws. */

type Closer = () => void | Promise<void>;

export class Opened {
  readonly #closers: Closer[] = [];

  /** Returns `resource`; `close` is called with it when its turn comes. */
  add<T>(resource: T, close: (resource: T) => void | Promise<void>): T {
    this.#closers.push(() => close(resource));
    return resource;
  }

  /** As `add`, for what closes itself. */
  own<T extends { close(): void | Promise<void> }>(resource: T): T {
    return this.add(resource, (handle) => handle.close());
  }

  /** Closes the one opened last first. Throws what a closer threw, after the others; AggregateError for several. */
  async close(): Promise<void> {
    const errors: unknown[] = [];
    for (const closer of this.#closers.splice(0).reverse()) {
      try {
        await closer();
      } catch (error) {
        errors.push(error);
      }
    }
    throwAll(errors);
  }

  /** As `close`, at once. TypeError where a closer returned a promise, which would outlive the call. */
  closeNow(): void {
    const errors: unknown[] = [];
    for (const closer of this.#closers.splice(0).reverse()) {
      try {
        if (closer() instanceof Promise) {
          throw new TypeError('a closer returned a promise: use close()');
        }
      } catch (error) {
        errors.push(error);
      }
    }
    throwAll(errors);
  }
}

function throwAll(errors: readonly unknown[]): void {
  if (errors.length > 1) {
    throw new AggregateError(errors, `${errors.length} resources could not be closed`);
  }
  if (errors.length === 1) {
    throw errors[0];
  }
}
