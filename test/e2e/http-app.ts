/** An app that speaks HTTP through a node's proxy, and the server that tells what has reached it. */

import { readFileSync, writeFileSync } from 'node:fs';
import { basename, join } from 'node:path';
import { inNetns, tryRun } from '../lab/exec.js';
import { buildApp } from '../lab/image.js';
import type { Lab } from '../lab/lab.js';
import { type LabPod, reply } from '../lab/pod.js';
import type { TestAgent } from './agent.js';

const ECHO = join(import.meta.dirname, '../lab/http-echo.ts');
const EXAMPLES = join(import.meta.dirname, '../../examples');
export const HTTP_PORT = 8080;

export const spiffeId = (account: string) => `spiffe://cluster.local/ns/default/sa/${account}`;

export interface Answer {
  readonly localPort: number;
  readonly status: number;
  readonly head: string;
  readonly body: string;
}

/** On the remote. */
export async function echo(lab: Lab, ...ports: readonly number[]): Promise<void> {
  const words = ['--import', 'tsx', ECHO, ...ports.map(String)];
  await lab.daemon(lab.remote, 'echo', process.execPath, words).logged(/echoing/);
}

/** Headers as `name:value`, without spaces. */
export async function get(
  pod: Pick<LabPod, 'app'>,
  ip: string,
  headers: readonly string[] = [],
  port = HTTP_PORT,
): Promise<Answer> {
  const { answer, localPort, ...more } = reply(await pod.app(['request', ip, String(port), ...headers]));
  if (typeof answer !== 'string') {
    throw new Error(`no answer: ${JSON.stringify(more)}`);
  }
  const [head = '', body = ''] = answer.split('\r\n\r\n', 2);
  return { localPort: Number(localPort), status: Number(head.split(' ')[1]), head, body };
}

/** What the server has got, each header with all its values. */
export function echoed({ body }: Answer): Record<string, readonly string[]> {
  return (JSON.parse(body) as { headers: Record<string, readonly string[]> }).headers;
}

/** A process of a network namespace, as a pod. */
export function appIn(netns: string): Pick<LabPod, 'app'> {
  return { app: async (words) => tryRun(...inNetns(netns, await buildApp(), words)) };
}

/** The file of examples/ with the places of this lab for those of a node. Its path. */
export function exampleFor(
  lab: Lab,
  agent: TestAgent,
  name: string,
  places: Readonly<Record<string, string>> = {},
): string {
  const path = join(lab.directory, basename(name));
  let text = readFileSync(join(EXAMPLES, name), 'utf8');
  for (const [usual, here] of Object.entries({ '/run/nodesentry': agent.runDir, ...places })) {
    text = text.replaceAll(usual, here);
  }
  writeFileSync(path, text);
  return path;
}
