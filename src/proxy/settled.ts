export type Outcome<T> = { readonly value: T } | { readonly error: unknown };

/** Never rejects, so that the slower of two promises cannot go unhandled. */
export function settled<T>(promise: Promise<T>): Promise<Outcome<T>> {
  return promise.then(
    (value) => ({ value }),
    (error: unknown) => ({ error }),
  );
}
