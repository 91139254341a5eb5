/**
 * Traffic that lasts as long as a test wants, and tells how long its longest pause was. It runs on the host's files in a
 * pod's network namespace, as a process of a runc pod is seen by the node.
 */

import { appendFileSync, writeFileSync } from 'node:fs';
import { basename, join } from 'node:path';
import { expect } from 'vitest';
import { type Daemon, waitFor } from './exec.js';
import { buildApp } from './image.js';
import { type Lab, REMOTE } from './lab.js';
import { patient } from './patience.js';
import type { LabPod } from './pod.js';

/** Requests over one connection; a connection for each; connections alone, which no question of the proxy's delays. */
export type LoadKind = 'keepalive' | 'connects' | 'handshakes';

export interface Told {
  readonly kind: LoadKind;
  /** Requests. */
  readonly done: number;
  readonly failures: number;
  readonly error: string;
  /** Of the handshakes; 0 where there was none. */
  readonly slowestDialMs: number;
  /** Of requests, handshake included. */
  readonly slowestMs: number;
  /** Of the same, to a tenth. */
  readonly p50Ms: number;
  readonly p99Ms: number;
}

export interface LoadSpec {
  readonly pod: LabPod;
  readonly kind: LoadKind;
  readonly family: 4 | 6;
  readonly everyMs: number;
  /** From the remote to the pod, which serves at port 80. */
  readonly inbound?: true;
  /** In the place of that server. */
  readonly at?: { readonly ip: string; readonly port: number } | undefined;
}

let loads = 0;

interface Stream {
  readonly kind: LoadKind;
  readonly daemon: Daemon;
}

/** Several streams, told and ended together. */
export class Load {
  readonly #control: string;
  readonly #streams: readonly Stream[];
  #told = 0;

  private constructor(control: string, streams: readonly Stream[]) {
    this.#control = control;
    this.#streams = streams;
  }

  /** Returns once each of them has had an answer. */
  static async start(lab: Lab, specs: readonly LoadSpec[]): Promise<Load> {
    loads += 1;
    const control = join(lab.directory, `load-${loads}`);
    writeFileSync(control, '');
    const app = await buildApp();
    const streams = specs.map(({ pod, kind, family, everyMs, inbound, at }, index) => {
      const [from, to] = inbound ? [lab.remote, pod.ips[family]] : [basename(pod.netns), REMOTE[family]];
      const words = ['load', kind, at?.ip ?? to, String(at?.port ?? 80), String(everyMs * 1_000), control];
      return { kind, daemon: lab.daemon(from, `load-${loads}-${index}`, app, words) };
    });
    const load = new Load(control, streams);
    await load.told();
    return load;
  }

  /** What has been since the last time, stream by stream in the order in which they were given. */
  told(): Promise<Told[]> {
    return this.#ask('.');
  }

  /** The same, and ends it. */
  async stop(): Promise<Told[]> {
    const last = await this.#ask('q');
    await this.end();
    return last;
  }

  /** Without a word, also a second time. */
  async end(): Promise<void> {
    await Promise.all(this.#streams.map(({ daemon }) => daemon.stop()));
  }

  async #ask(byte: string): Promise<Told[]> {
    this.#told += 1;
    appendFileSync(this.#control, byte);
    return Promise.all(
      this.#streams.map(({ kind, daemon }) =>
        waitFor(
          `${daemon.name} to tell`,
          () => {
            const line = daemon.log().split('\n')[this.#told - 1];
            return line?.endsWith('}') === true
              ? { kind, ...(JSON.parse(line) as Omit<Told, 'kind'>) }
              : undefined;
          },
          60_000,
        ),
      ),
    );
  }
}

/** Less than this is the noise of a busy machine. */
const NOISE_MS = patient(40);
/** A SYN that was lost comes again after a second: no limit may reach that. */
const LOST_SYN_MS = patient(900);

/** How long a pause may be, by the longest one that there was while nothing happened. */
export class Pauses {
  readonly #undisturbedMs: number;

  private constructor(undisturbedMs: number) {
    this.#undisturbedMs = undisturbedMs;
  }

  /** While the machine works as hard as it will when something is changed, and nothing is changed. */
  static async undisturbed(load: Load, meanwhile: () => Promise<unknown>): Promise<Pauses> {
    await load.told();
    await meanwhile();
    return new Pauses(Math.max(...(await load.told()).map(longestMs)));
  }

  get limitMs(): number {
    return Math.min(LOST_SYN_MS, 10 * Math.max(NOISE_MS, this.#undisturbedMs));
  }

  /** No request failed, and none waited longer than a change may make it. Prints the longest. */
  check(what: string, told: readonly Told[], limitMs = this.limitMs): void {
    const longest = Math.max(...told.map(longestMs));
    process.stdout.write(
      `${what}: longest pause ${longest} ms of ${told.reduce((sum, { done }) => sum + done, 0)} requests, undisturbed ` +
        `${this.#undisturbedMs} ms, allowed ${limitMs} ms\n`,
    );
    expect(told.filter(({ failures }) => failures > 0)).toEqual([]);
    expect(longest).toBeLessThan(limitMs);
  }
}

/** What the datapath is to answer for: a request of `connects` waits for the proxy's question as well. */
function longestMs({ kind, slowestDialMs, slowestMs }: Told): number {
  return kind === 'keepalive' ? slowestMs : slowestDialMs;
}
