/**
 * Traffic that lasts as long as a test wants, and tells how long its longest pause was. It runs on the host's files in a
 * pod's network namespace, as a process of a runc pod is seen by the node.
 */

import { appendFileSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { type Daemon, waitFor } from './exec.js';
import { buildApp } from './image.js';
import { type Lab, REMOTE } from './lab.js';
import type { LabPod } from './pod.js';

export type LoadKind = 'keepalive' | 'connects';

export interface Told {
  /** Requests. */
  readonly done: number;
  readonly failures: number;
  readonly error: string;
  /** Of the handshakes; 0 where there was none. */
  readonly slowestDialMs: number;
  /** Of requests, handshake included. */
  readonly slowestMs: number;
}

export interface LoadSpec {
  readonly pod: LabPod;
  readonly kind: LoadKind;
  readonly family: 4 | 6;
  readonly everyMs: number;
}

let loads = 0;

/** Several streams, told and ended together. */
export class Load {
  readonly #control: string;
  readonly #streams: readonly Daemon[];
  #told = 0;

  private constructor(control: string, streams: readonly Daemon[]) {
    this.#control = control;
    this.#streams = streams;
  }

  /** Returns once each of them has had an answer. */
  static async start(lab: Lab, specs: readonly LoadSpec[]): Promise<Load> {
    loads += 1;
    const control = join(lab.directory, `load-${loads}`);
    writeFileSync(control, '');
    const app = await buildApp();
    const streams = specs.map(({ pod, kind, family, everyMs }, index) => {
      const words = ['load', kind, REMOTE[family], '80', String(everyMs * 1_000), control];
      const name = `load-${loads}-${index}`;
      const netns = pod.netns.slice(pod.netns.lastIndexOf('/') + 1);
      return lab.daemon(netns, name, app, words);
    });
    const load = new Load(control, streams);
    await load.told();
    return load;
  }

  /** What has been since the last time, stream by stream in the order in which they were given. */
  told(): Promise<Told[]> {
    return this.#ask('.');
  }

  async stop(): Promise<Told[]> {
    const last = await this.#ask('q');
    await Promise.all(this.#streams.map((stream) => stream.stop()));
    return last;
  }

  async #ask(byte: string): Promise<Told[]> {
    this.#told += 1;
    appendFileSync(this.#control, byte);
    return Promise.all(
      this.#streams.map((stream) =>
        waitFor(
          `${stream.name} to tell`,
          () => {
            const line = stream.log().split('\n')[this.#told - 1];
            return line?.endsWith('}') === true ? (JSON.parse(line) as Told) : undefined;
          },
          60_000,
        ),
      ),
    );
  }
}

/** Less than this is the noise of a busy machine. */
const NOISE_MS = 20;
/** A SYN that was lost comes again after a second: no limit may reach that. */
const LOST_SYN_MS = 900;

/** How long a pause may be, by the longest one that there was while nothing happened. */
export function longestAllowedMs(undisturbedMs: number): number {
  return Math.min(LOST_SYN_MS, 10 * Math.max(NOISE_MS, undisturbedMs));
}
