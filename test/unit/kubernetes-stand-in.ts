/**
 * A stand-in for the API server: lists and watches of pods and namespaces over real HTTP, with answers that a test
 * sets; of nodes and events it has none. What a real one does is tested in test/k8s; this one does what a real one cannot be made to do.
 */

import { writeFileSync } from 'node:fs';
import { createServer, type IncomingMessage, type Server, type ServerResponse } from 'node:http';
import type { AddressInfo, Socket } from 'node:net';
import { stringify } from 'yaml';

export interface ApiObject {
  metadata: {
    name: string;
    namespace?: string;
    uid?: string;
    resourceVersion?: string;
    [key: string]: unknown;
  };
  [key: string]: unknown;
}

export type Resource = 'pods' | 'namespaces';

export interface Fault {
  readonly status: number;
  readonly body?: unknown;
}

interface Watcher {
  readonly resource: Resource;
  readonly response: ServerResponse;
  readonly query: URLSearchParams;
}

export class ApiServerStandIn {
  readonly objects: Record<Resource, Map<string, unknown>> = { pods: new Map(), namespaces: new Map() };
  /** What a call is answered with, by `list pods`, `watch pods`, `get pods`; `hang` never answers. */
  readonly faults = new Map<string, Fault | 'hang'>();
  readonly calls: { what: string; url: URL; token: string | undefined }[] = [];
  /** Lists have pages of at most so many. */
  pageSize = 1000;
  /** Watches from before are told that they are too old. */
  compactedAt = 0;
  /** Called before a list or get is answered. */
  beforeAnswer: ((what: string) => Promise<void>) | undefined;
  version = 100;
  #server: Server | undefined;
  #port = 0;
  readonly #sockets = new Set<Socket>();
  readonly #watchers = new Set<Watcher>();
  #history: { version: number; resource: Resource; type: string; object: unknown }[] = [];

  get url(): string {
    return `http://127.0.0.1:${this.#port}`;
  }

  async listen(): Promise<void> {
    const server = createServer((request, response) => void this.#answer(request, response));
    server.on('connection', (socket) => {
      this.#sockets.add(socket);
      socket.once('close', () => this.#sockets.delete(socket));
    });
    await new Promise<void>((resolve, reject) => {
      server.once('error', reject);
      server.listen(this.#port, '127.0.0.1', resolve);
    });
    this.#port = (server.address() as AddressInfo).port;
    this.#server = server;
  }

  /** As if the process had been killed; `listen` again comes back on the same port. */
  async kill(): Promise<void> {
    const server = this.#server;
    this.#server = undefined;
    const closed = new Promise<void>((resolve) =>
      server === undefined ? resolve() : server.close(() => resolve()),
    );
    for (const socket of this.#sockets) {
      socket.destroy();
    }
    this.#watchers.clear();
    await closed;
  }

  writeKubeconfig(path: string, more: { server?: string; cluster?: object; user?: object } = {}): void {
    const cluster = { server: more.server ?? this.url, 'insecure-skip-tls-verify': true, ...more.cluster };
    writeFileSync(
      path,
      stringify({
        apiVersion: 'v1',
        kind: 'Config',
        clusters: [{ name: 'c', cluster }],
        users: [{ name: 'u', user: { token: 'secret', ...more.user } }],
        contexts: [{ name: 'x', context: { cluster: 'c', user: 'u' } }],
        'current-context': 'x',
      }),
    );
  }

  watches(resource: Resource): number {
    return [...this.#watchers].filter((watcher) => watcher.resource === resource).length;
  }

  callsOf(what: string): URL[] {
    return this.calls.filter((call) => call.what === what).map(({ url }) => url);
  }

  /** Adds or changes; watchers hear of it. */
  put(resource: Resource, object: ApiObject): ApiObject {
    const key = `${object.metadata.namespace ?? ''}/${object.metadata.name}`;
    const known = this.objects[resource].has(key);
    this.version += 1;
    const stored = {
      ...object,
      metadata: {
        uid: `uid-${object.metadata.name}`,
        ...object.metadata,
        resourceVersion: object.metadata.resourceVersion ?? String(this.version),
      },
    };
    this.objects[resource].set(key, stored);
    this.#tell(resource, known ? 'MODIFIED' : 'ADDED', stored);
    return stored;
  }

  delete(resource: Resource, name: string, namespace = ''): void {
    const key = `${namespace}/${name}`;
    const object = this.objects[resource].get(key) as ApiObject;
    this.objects[resource].delete(key);
    this.version += 1;
    this.#tell(resource, 'DELETED', {
      ...object,
      metadata: { ...object.metadata, resourceVersion: String(this.version) },
    });
  }

  bookmark(resource: Resource): void {
    this.version += 1;
    this.#send(resource, {
      type: 'BOOKMARK',
      object: { kind: 'Pod', metadata: { resourceVersion: String(this.version) } },
    });
  }

  /** A line as it is, to every watcher. */
  raw(resource: Resource, line: string): void {
    for (const watcher of this.#watchers) {
      if (watcher.resource === resource) {
        watcher.response.write(line);
      }
    }
  }

  /** Ends every watch in order, as `timeoutSeconds` does. */
  endWatches(resource: Resource): void {
    for (const watcher of [...this.#watchers].filter((one) => one.resource === resource)) {
      this.#watchers.delete(watcher);
      watcher.response.end();
    }
  }

  /** Cuts every watch. */
  cutWatches(resource: Resource): void {
    for (const watcher of [...this.#watchers].filter((one) => one.resource === resource)) {
      this.#watchers.delete(watcher);
      watcher.response.destroy();
    }
  }

  /** Keeps the connections open, and tells their watchers nothing more. */
  stallWatches(resource: Resource): void {
    for (const watcher of [...this.#watchers].filter((one) => one.resource === resource)) {
      this.#watchers.delete(watcher);
    }
  }

  #tell(resource: Resource, type: string, object: unknown): void {
    this.#history.push({ version: this.version, resource, type, object });
    this.#send(resource, { type, object });
  }

  #send(resource: Resource, event: object): void {
    this.raw(resource, `${JSON.stringify(event)}\n`);
  }

  async #answer(request: IncomingMessage, response: ServerResponse): Promise<void> {
    const url = new URL(request.url ?? '/', this.url);
    const [, told] = /\/(nodes|events)(?:\/[^/]+)?$/.exec(url.pathname) ?? [];
    if (told !== undefined) {
      const asked = `${{ POST: 'create', PATCH: 'patch' }[request.method ?? ''] ?? 'get'} ${told}`;
      this.calls.push({ what: asked, url, token: request.headers.authorization });
      const set = this.faults.get(asked);
      const missing: Fault = { status: 404, body: status(404, 'NotFound', 'not found') };
      const answer = typeof set === 'object' ? set : missing;
      this.#json(response, answer.status, answer.body ?? '');
      return;
    }
    const [, namespace, name] =
      /^\/api\/v1\/namespaces\/([^/]+)(?:\/pods\/([^/]+))?$/.exec(url.pathname) ?? [];
    const resource: Resource = name !== undefined || url.pathname.endsWith('/pods') ? 'pods' : 'namespaces';
    const verb =
      namespace !== undefined ? 'get' : url.searchParams.get('watch') === 'true' ? 'watch' : 'list';
    const what = `${verb} ${resource}`;
    this.calls.push({ what, url, token: request.headers.authorization });
    const fault = this.faults.get(what);
    if (fault === 'hang') {
      return;
    }
    await this.beforeAnswer?.(what);
    if (fault !== undefined) {
      this.#json(response, fault.status, fault.body ?? '');
    } else if (verb === 'watch') {
      this.#watch(resource, url.searchParams, response);
    } else if (verb === 'list') {
      this.#list(resource, url.searchParams, response);
    } else {
      const found = this.objects[resource].get(name === undefined ? `/${namespace}` : `${namespace}/${name}`);
      this.#json(response, found === undefined ? 404 : 200, found ?? status(404, 'NotFound', 'not found'));
    }
  }

  #list(resource: Resource, query: URLSearchParams, response: ServerResponse): void {
    const all = [...this.objects[resource].values()];
    const from = Number(query.get('continue') ?? 0);
    const to = from + this.pageSize;
    this.#json(response, 200, {
      metadata: {
        resourceVersion: String(this.version),
        ...(to < all.length ? { continue: String(to) } : {}),
      },
      items: all.slice(from, to),
    });
  }

  #watch(resource: Resource, query: URLSearchParams, response: ServerResponse): void {
    const since = Number(query.get('resourceVersion'));
    response.writeHead(200, { 'content-type': 'application/json' });
    response.flushHeaders();
    if (since < this.compactedAt) {
      response.end(
        `${JSON.stringify({ type: 'ERROR', object: status(410, 'Expired', 'too old resource version') })}\n`,
      );
      return;
    }
    const watcher: Watcher = { resource, response, query };
    for (const { version, resource: of, type, object } of this.#history) {
      if (of === resource && version > since) {
        response.write(`${JSON.stringify({ type, object })}\n`);
      }
    }
    this.#watchers.add(watcher);
    response.once('close', () => this.#watchers.delete(watcher));
  }

  #json(response: ServerResponse, code: number, body: unknown): void {
    response.writeHead(code, { 'content-type': 'application/json' });
    response.end(typeof body === 'string' ? body : JSON.stringify(body));
  }
}

export function status(code: number, reason: string, message: string): object {
  return { kind: 'Status', apiVersion: 'v1', status: 'Failure', code, reason, message };
}

/** A pod of `node-a` as the API server shows it. */
export function apiPod(
  name: string,
  more: { metadata?: object; spec?: object; status?: object } = {},
): ApiObject {
  return {
    metadata: { name, namespace: 'default', labels: { app: name }, ...more.metadata },
    spec: { nodeName: 'node-a', serviceAccountName: `${name}-sa`, containers: [], ...more.spec },
    status: { phase: 'Running', podIPs: [{ ip: '10.66.0.3' }], ...more.status },
  };
}

export function apiNamespace(name: string, more: object = {}): ApiObject {
  return { metadata: { name, ...more } };
}
