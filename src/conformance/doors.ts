/** What a door has to answer, HTTP's and gRPC's alike. */

import type { Answer, Refusal, WatchEvent } from './answer.js';

/** By the names of HTTP's parameters; values as text. */
export type Asked = Readonly<Record<string, string>>;

export interface WatchFrom {
  readonly epoch: string;
  readonly since: number;
}

export interface AgentStatus {
  readonly version: string;
  readonly node: string;
  readonly pid: number;
  readonly epoch: string;
  readonly ready: boolean;
}

export interface Door {
  readonly name: 'HTTP' | 'gRPC';
  ask(asked: Asked): Promise<Answer>;
  /** In their order; one refusal where the batch is refused as a whole. */
  batch(asked: readonly Asked[]): Promise<readonly Answer[] | Refusal>;
  status(): Promise<AgentStatus>;
  /** Until `isEnough` says so, or `timeoutMs` is over. */
  watch(
    from: WatchFrom | undefined,
    isEnough: (events: readonly WatchEvent[]) => boolean,
    timeoutMs: number,
  ): Promise<readonly WatchEvent[]>;
  close(): void;
}
