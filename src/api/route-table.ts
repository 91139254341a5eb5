/** Which methods a path takes: for those who ask with another one. */

export interface Route {
  readonly method: string;
  /** As Fastify writes it: `/v1/workloads/:uid`, and `::` for a colon. */
  readonly url: string;
}

export class RouteTable {
  readonly #routes: (Route & { readonly pattern: RegExp })[] = [];

  get routes(): readonly Route[] {
    return this.#routes.map(({ method, url }) => ({ method, url }));
  }

  add(methods: string | readonly string[], url: string): void {
    const pattern = new RegExp(
      `^${url.replace(/[.]/g, '\\.').replace(/::|:\w+/g, (part) => (part === '::' ? ':' : '[^/]+'))}$`,
    );
    for (const method of typeof methods === 'string' ? [methods] : methods) {
      this.#routes.push({ method, url, pattern });
    }
  }

  /** Empty where there is no such path. */
  methodsOf(path: string): string[] {
    return this.#routes.filter(({ pattern }) => pattern.test(path)).map(({ method }) => method);
  }
}
