/** From a file to a `Config`, or to every mistake in it. */

import { readFileSync } from 'node:fs';
import { hostname } from 'node:os';
import { dirname, resolve } from 'node:path';
import { checkYaml, type FieldPath, type Problem } from '../pods/checked-yaml.js';
import type { Config } from './config.js';
import { ConfigError } from './errors.js';
import { findOverlaps } from './listeners.js';
import { configSchema } from './schema.js';

/** Of a container of the agent it says the environment, whatever the node's host name is. */
export function ownNodeName(): string {
  return process.env.NODESENTRY_NODE || hostname();
}

/**
 * Reads and checks a configuration file; `node` is what it says, else `nodeName`. Throws ConfigError with every
 * problem found.
 */
export function loadConfig(path: string, nodeName = ownNodeName()): Config {
  let text: string;
  try {
    text = readFileSync(path, 'utf8');
  } catch (error) {
    const message = `the configuration cannot be read: ${(error as Error).message}`;
    throw new ConfigError([{ file: path, line: 0, field: '', message }], { cause: error });
  }
  return parseConfig(text, path, nodeName);
}

/**
 * `path` stands in messages, and its folder is where relative paths in the file start. Throws ConfigError with all
 * that is wrong.
 */
export function parseConfig(text: string, path: string, nodeName = ownNodeName()): Config {
  const checked = checkYaml(path, text, configSchema(nodeName));
  if (!checked.ok) {
    throw new ConfigError(checked.problems);
  }
  const { sources, ...rest } = checked.value;
  const problems: Problem[] = [];
  const report = (field: FieldPath, message: string): void => {
    problems.push(checked.problemAt(field, message));
  };
  if (Object.values(sources).every((source) => source === undefined)) {
    report(['sources'], 'at least one source is needed: static, cri, kubernetes or cni');
  }
  if (rest.capacity.target !== undefined && sources.kubernetes === undefined) {
    report(['capacity', 'target'], 'a target is looked for at the API server: sources.kubernetes is needed');
  }
  const names = rest.instances.map((instance) => instance.name);
  names.forEach((name, index) => {
    if (names.indexOf(name) !== index) {
      report(['instances', index, 'name'], `${name} is the name of an instance before it`);
    }
  });
  for (const { path: field, message } of findOverlaps(rest)) {
    report(field, message);
  }
  if (problems.length > 0) {
    throw new ConfigError(problems);
  }
  const inFolder = (file: string): string => resolve(dirname(path), file);
  return {
    ...rest,
    sources: {
      ...(sources.static === undefined ? {} : { static: { file: inFolder(sources.static.file) } }),
      ...(sources.cri === undefined ? {} : { cri: sources.cri }),
      ...(sources.cni === undefined ? {} : { cni: sources.cni }),
      ...(sources.kubernetes === undefined
        ? {}
        : { kubernetes: withKubeconfig(sources.kubernetes, inFolder) }),
    },
  };
}

function withKubeconfig<T extends { kubeconfig?: string | undefined }>(
  { kubeconfig, ...rest }: T,
  inFolder: (file: string) => string,
): Omit<T, 'kubeconfig'> & { kubeconfig?: string } {
  return { ...rest, ...(kubeconfig === undefined ? {} : { kubeconfig: inFolder(kubeconfig) }) };
}
