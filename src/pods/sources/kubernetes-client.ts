/** The calls to the API server that we make: a time limit on each, every length bounded, every error with a code. */

import { type ClientRequest, type IncomingMessage, request as requestHttp } from 'node:http';
import { request as requestHttps } from 'node:https';
import type { ApiServerAccess } from './kubernetes-config.js';

export type KubernetesErrorCode =
  | 'UNAUTHORIZED'
  | 'FORBIDDEN'
  | 'NOT_FOUND'
  /** Something of that name is there already. */
  /** Something of that name is there already, or the object is another one by now. */
  | 'CONFLICT'
  | 'GONE'
  /** Understood and not taken: among others a JSON patch whose test does not hold. */
  | 'REJECTED'
  /** The namespace is being deleted: nothing is made in it any more. */
  | 'TERMINATING'
  | 'UNAVAILABLE'
  | 'TIMEOUT'
  | 'STALLED'
  | 'CANCELLED'
  | 'INVALID'
  | 'FAILED';

export class KubernetesError extends Error {
  override readonly name = 'KubernetesError';

  constructor(
    readonly code: KubernetesErrorCode,
    message: string,
    options?: ErrorOptions,
  ) {
    super(message, options);
  }
}

/** What is asked for: `path` below the server, and the words for messages, such as `list pods`. */
export interface Call {
  readonly what: string;
  readonly path: string;
  readonly query?: Readonly<Record<string, string>>;
}

/** `create` makes an object; `merge` (RFC 7386), `json` (RFC 6902) and `strategic` (lists by their keys) change one. */
export type Write =
  | { readonly kind: 'create'; readonly object: object }
  | { readonly kind: 'merge' | 'strategic'; readonly patch: object }
  | { readonly kind: 'json'; readonly patch: readonly object[] };

interface Body {
  readonly method: 'POST' | 'PATCH';
  readonly type: string;
  readonly json: string;
}

export interface WatchHandlers {
  /** The API server has accepted the watch. */
  onOpen(): void;
  /** One line of the stream, as JSON gave it. */
  onEvent(event: unknown): void;
}

/** 500 pods of 100 kB each are a bad day; etcd refuses an object of more than 1.5 MB. */
const MAX_BODY_BYTES = 64 << 20;
const MAX_LINE_BYTES = 8 << 20;
const MAX_ERROR_BODY_BYTES = 64 << 10;

export class KubernetesClient {
  readonly #access: ApiServerAccess;
  readonly #deadlineMs: number;

  /** `deadlineMs` limits a whole call, and of a watch the time until its first byte. */
  constructor(access: ApiServerAccess, deadlineMs: number) {
    this.#access = access;
    this.#deadlineMs = deadlineMs;
  }

  /** The JSON of the answer. Throws KubernetesError. */
  get(call: Call, signal: AbortSignal): Promise<unknown> {
    return this.#exchange(call, undefined, signal);
  }

  /** The object as it is then. Throws KubernetesError. */
  write(call: Call, write: Write, signal: AbortSignal): Promise<unknown> {
    return this.#exchange(call, bodyOf(write), signal);
  }

  async #exchange(call: Call, body: Body | undefined, signal: AbortSignal): Promise<unknown> {
    const scope = new CallScope(this.#say(call), signal, this.#deadlineMs);
    try {
      const answer = await scope.race(
        this.#send(call, scope, body).then((response) => readBody(response, MAX_BODY_BYTES)),
      );
      return parseJson(answer, this.#say(call));
    } catch (error) {
      throw scope.explain(error);
    } finally {
      scope.close();
    }
  }

  /**
   * Resolves when the API server ends the stream in order. Throws KubernetesError otherwise: STALLED after `stallMs`
   * without a byte, INVALID for a line that is not JSON, CANCELLED when `signal` aborts.
   */
  async watch(call: Call, stallMs: number, handlers: WatchHandlers, signal: AbortSignal): Promise<void> {
    const scope = new CallScope(this.#say(call), signal, this.#deadlineMs);
    try {
      const response = await scope.race(this.#send(call, scope));
      handlers.onOpen();
      await scope.race(this.#readLines(call, response, stallMs, handlers, scope));
    } catch (error) {
      throw scope.explain(error);
    } finally {
      scope.close();
    }
  }

  #readLines(
    call: Call,
    response: IncomingMessage,
    stallMs: number,
    handlers: WatchHandlers,
    scope: CallScope,
  ): Promise<void> {
    const what = this.#say(call);
    const silence = new KubernetesError('STALLED', `${what}: nothing came for ${stallMs} ms`);
    scope.limit(stallMs, silence);
    return new Promise((resolve, reject) => {
      let parts: Buffer[] = [];
      let length = 0;
      response.on('data', (chunk: Buffer) => {
        scope.limit(stallMs, silence);
        let from = 0;
        try {
          for (let end = chunk.indexOf(10); end >= 0; end = chunk.indexOf(10, from)) {
            const line = Buffer.concat([...parts, chunk.subarray(from, end)]).toString('utf8');
            parts = [];
            length = 0;
            from = end + 1;
            if (line.trim() !== '') {
              handlers.onEvent(parseJson(line, what));
            }
          }
          parts.push(chunk.subarray(from));
          length += chunk.length - from;
          if (length > MAX_LINE_BYTES) {
            throw new KubernetesError('INVALID', `${what}: an event of more than ${MAX_LINE_BYTES} bytes`);
          }
        } catch (error) {
          // Not from inside the loop again: what came after is not to be trusted.
          response.removeAllListeners('data');
          reject(error);
        }
      });
      response.once('end', () => resolve());
      response.once('error', reject);
      response.once('close', () => reject(new Error('the connection was closed')));
    });
  }

  async #send(call: Call, scope: CallScope, body?: Body): Promise<IncomingMessage> {
    const url = new URL(this.#access.server + call.path);
    for (const [key, value] of Object.entries(call.query ?? {})) {
      url.searchParams.set(key, value);
    }
    const options = await this.#access.requestOptions();
    scope.throwIfOver();
    const send = url.protocol === 'http:' ? requestHttp : requestHttps;
    const response = await new Promise<IncomingMessage>((resolve, reject) => {
      const request = send(url, {
        ...options,
        method: body?.method ?? 'GET',
        headers: {
          ...options.headers,
          ...(body === undefined ? {} : { 'content-type': body.type }),
          accept: 'application/json',
          'user-agent': 'nodesentry',
        },
      });
      scope.own(request);
      request.once('response', resolve);
      request.on('error', reject);
      request.end(body?.json);
    });
    if (response.statusCode !== 200 && response.statusCode !== 201) {
      const told = await readBody(response, MAX_ERROR_BODY_BYTES).catch(() => '');
      throw statusError(this.#say(call), response.statusCode ?? 0, told);
    }
    return response;
  }

  #say({ what }: Call): string {
    return `${this.#access.server}: ${what}`;
  }
}

/** One call's time limit, its abort signal and its connection, let go of together. */
class CallScope {
  readonly #what: string;
  readonly #signal: AbortSignal;
  readonly #onAbort = (): void =>
    this.#end(new KubernetesError('CANCELLED', `${this.#what}: the caller gave up`));
  #timer: NodeJS.Timeout | undefined;
  #request: ClientRequest | undefined;
  #reason: KubernetesError | undefined;
  #fail: ((reason: KubernetesError) => void) | undefined;

  constructor(what: string, signal: AbortSignal, deadlineMs: number) {
    this.#what = what;
    this.#signal = signal;
    this.limit(deadlineMs, new KubernetesError('TIMEOUT', `${what}: no answer within ${deadlineMs} ms`));
    if (signal.aborted) {
      this.#onAbort();
    } else {
      signal.addEventListener('abort', this.#onAbort, { once: true });
    }
  }

  /** From now on; replaces the limit before it. */
  limit(timeoutMs: number, reason: KubernetesError): void {
    clearTimeout(this.#timer);
    this.#timer = setTimeout(() => this.#end(reason), timeoutMs);
  }

  own(request: ClientRequest): void {
    this.#request = request;
  }

  /** The outcome of `work`, or the reason why it was not waited for any longer. */
  race<T>(work: Promise<T>): Promise<T> {
    return new Promise((resolve, reject) => {
      this.#fail = reject;
      work.then(resolve, reject);
      if (this.#reason !== undefined) {
        reject(this.#reason);
      }
    });
  }

  throwIfOver(): void {
    if (this.#reason !== undefined) {
      throw this.#reason;
    }
  }

  explain(error: unknown): KubernetesError {
    if (this.#reason !== undefined) {
      return this.#reason;
    }
    if (error instanceof KubernetesError) {
      return error;
    }
    const why = error instanceof Error ? error.message || error.name : String(error);
    return new KubernetesError('UNAVAILABLE', `${this.#what}: ${why}`, { cause: error });
  }

  close(): void {
    clearTimeout(this.#timer);
    this.#signal.removeEventListener('abort', this.#onAbort);
    this.#request?.on('error', () => undefined).destroy();
  }

  #end(reason: KubernetesError): void {
    this.#reason ??= reason;
    this.#request?.destroy();
    this.#fail?.(this.#reason);
  }
}

const PATCH_TYPES = {
  json: 'application/json-patch+json',
  merge: 'application/merge-patch+json',
  strategic: 'application/strategic-merge-patch+json',
} as const;

function bodyOf(write: Write): Body {
  return write.kind === 'create'
    ? { method: 'POST', type: 'application/json', json: JSON.stringify(write.object) }
    : { method: 'PATCH', type: PATCH_TYPES[write.kind], json: JSON.stringify(write.patch) };
}

function readBody(response: IncomingMessage, maxBytes: number): Promise<string> {
  return new Promise((resolve, reject) => {
    const chunks: Buffer[] = [];
    let length = 0;
    response.on('data', (chunk: Buffer) => {
      length += chunk.length;
      if (length > maxBytes) {
        response.destroy(new Error(`the answer has more than ${maxBytes} bytes`));
        return;
      }
      chunks.push(chunk);
    });
    response.once('end', () => resolve(Buffer.concat(chunks).toString('utf8')));
    response.once('error', reject);
    response.once('close', () => reject(new Error('the connection was closed in the middle of the answer')));
  });
}

function parseJson(text: string, what: string): unknown {
  try {
    return JSON.parse(text);
  } catch (error) {
    const start = JSON.stringify(text.slice(0, 60));
    throw new KubernetesError('INVALID', `${what}: expected JSON, got ${start}`, { cause: error });
  }
}

/** `body` is a `Status` object where the API server itself answered. */
function statusError(what: string, status: number, body: string): KubernetesError {
  let told = body.trim().slice(0, 300);
  let code = codeOf(status);
  try {
    const parsed: unknown = JSON.parse(body);
    if (typeof parsed === 'object' && parsed !== null && 'message' in parsed) {
      told = String(parsed.message);
    }
    if (code === 'FORBIDDEN' && isTerminating(parsed)) {
      code = 'TERMINATING';
    }
  } catch {
    // A proxy's page, or half an answer: shown as it came.
  }
  const advice =
    code === 'FORBIDDEN'
      ? '; deploy/base/rbac.yaml has what the agent needs'
      : code === 'UNAUTHORIZED'
        ? '; the token or certificate is not accepted'
        : '';
  return new KubernetesError(code, `${what}: HTTP ${status}${told === '' ? '' : `: ${told}`}${advice}`);
}

/** `k8s.io/api/core/v1`, NamespaceTerminatingCause: a 403 that no permission mends. */
function isTerminating(status: unknown): boolean {
  const { details } = status as { details?: { causes?: readonly { reason?: unknown }[] } };
  return details?.causes?.some(({ reason }) => reason === 'NamespaceTerminating') ?? false;
}

/** Also of a `Status` object in a watch. */
export function codeOf(status: number): KubernetesErrorCode {
  switch (status) {
    case 401:
      return 'UNAUTHORIZED';
    case 403:
      return 'FORBIDDEN';
    case 404:
      return 'NOT_FOUND';
    case 409:
      return 'CONFLICT';
    case 410:
      return 'GONE';
    case 422:
      return 'REJECTED';
    default:
      return status === 429 || status >= 500 ? 'UNAVAILABLE' : 'FAILED';
  }
}
