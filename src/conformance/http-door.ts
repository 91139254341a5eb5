/** The HTTP API on its Unix socket. */

import { type IncomingHttpHeaders, request } from 'node:http';
import {
  type Answer,
  type Fields,
  fields,
  named,
  type Refusal,
  refusal,
  text,
  type WatchEvent,
  workloadText,
} from './answer.js';
import type { AgentStatus, Asked, Door, WatchFrom } from './doors.js';

export interface HttpReply {
  readonly status: number;
  readonly headers: IncomingHttpHeaders;
  readonly body: unknown;
}

export class HttpDoor implements Door {
  readonly name = 'HTTP';
  /** Of the socket. */
  readonly path: string;

  constructor(path: string) {
    this.path = path;
  }

  /** Rejects where nobody answers within 10 s. */
  send(method: string, path: string, options: { guard?: boolean; body?: string } = {}): Promise<HttpReply> {
    const { guard = true, body } = options;
    return new Promise((resolve, reject) => {
      const sent = request(
        {
          socketPath: this.path,
          method,
          path,
          timeout: 10_000,
          headers: {
            ...(guard && { 'nodesentry.io': 'true' }),
            ...(body !== undefined && { 'content-type': 'application/json' }),
          },
        },
        (response) => {
          const parts: Buffer[] = [];
          response.on('data', (part: Buffer) => parts.push(part));
          response.on('end', () => {
            const whole = Buffer.concat(parts).toString();
            const isJson = /json/.test(text(response.headers['content-type']));
            resolve({
              status: response.statusCode ?? 0,
              headers: response.headers,
              body: isJson ? JSON.parse(whole) : whole,
            });
          });
          response.on('error', reject);
        },
      );
      sent.on('timeout', () => sent.destroy(new Error(`${method} ${path}: no answer within 10 s`)));
      sent.on('error', reject);
      sent.end(body);
    });
  }

  async ask(asked: Asked): Promise<Answer> {
    const { status, body } = await this.send('GET', `/v1/resolve?${new URLSearchParams(asked)}`);
    return status === 200 ? named(fields(body)) : problemOf(body);
  }

  async batch(asked: readonly Asked[]): Promise<readonly Answer[] | Refusal> {
    const sent = { body: JSON.stringify({ queries: asked }) };
    const { status, body } = await this.send('POST', '/v1/resolve:batch', sent);
    if (status !== 200) {
      return problemOf(body);
    }
    return (fields(body).results as readonly Fields[]).map(({ resolution, problem }) =>
      problem === undefined ? named(fields(resolution)) : problemOf(problem),
    );
  }

  async status(): Promise<AgentStatus> {
    const { version, node, pid, epoch, ready } = (await this.send('GET', '/v1/status')).body as AgentStatus;
    return { version, node, pid, epoch, ready };
  }

  watch(
    from: WatchFrom | undefined,
    isEnough: (events: readonly WatchEvent[]) => boolean,
    timeoutMs: number,
  ): Promise<readonly WatchEvent[]> {
    const path = from === undefined ? '/v1/watch' : `/v1/watch?epoch=${from.epoch}&since=${from.since}`;
    return new Promise((resolve, reject) => {
      const events: WatchEvent[] = [];
      let rest = '';
      const sent = request(
        { socketPath: this.path, path, headers: { 'nodesentry.io': 'true' } },
        (response) => {
          response.setEncoding('utf8');
          response.on('data', (part: string) => {
            const lines = (rest + part).split('\n');
            rest = lines.pop() ?? '';
            events.push(...lines.map((line) => ofLine(JSON.parse(line) as Fields)));
            if (isEnough(events)) {
              done();
            }
          });
          response.on('end', done);
        },
      );
      const timer = setTimeout(done, timeoutMs);
      function done(): void {
        clearTimeout(timer);
        resolve(events);
        sent.destroy();
      }
      sent.on('error', (error) => {
        clearTimeout(timer);
        reject(error);
      });
      sent.end();
    });
  }

  close(): void {
    // A connection of its own for each request.
  }
}

function problemOf(problem: unknown): Refusal {
  const { reason, detail } = fields(problem);
  return refusal(reason, detail);
}

function ofLine(line: Fields): WatchEvent {
  const workload = fields(line.workload);
  return {
    kind: line.type as WatchEvent['kind'],
    epoch: text(line.epoch),
    revision: Number(line.revision),
    uid: text(line.uid ?? workload.uid),
    workload: line.type === 'UPSERT' ? workloadText(workload) : '',
  };
}
