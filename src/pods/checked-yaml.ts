/** YAML files checked against a schema, every mistake told with its line and its field. */

import { type Document, isAlias, isMap, isScalar, LineCounter, type Node, parseDocument } from 'yaml';
import type { z } from 'zod';

/** One mistake in a file that a person wrote. */
export interface Problem {
  readonly file: string;
  /** 1-based; 0 where the file as a whole is meant. */
  readonly line: number;
  /** Such as `pods[0].ips[1]`; empty for the whole document. */
  readonly field: string;
  readonly message: string;
}

export type FieldPath = readonly PropertyKey[];

export type CheckedYaml<T> =
  | { readonly ok: true; readonly value: T; problemAt(path: FieldPath, message: string): Problem }
  | { readonly ok: false; readonly problems: readonly Problem[] };

/** `file:line: field: message`, without the parts that are not known. */
export function formatProblem({ file, line, field, message }: Problem): string {
  const place = line === 0 ? file : `${file}:${line}`;
  return field === '' ? `${place}: ${message}` : `${place}: ${field}: ${message}`;
}

/**
 * Messages of the schema's own checks must say what was expected ("an IP address"); what was there is added here.
 * A message of a custom check with `params: { whole: true }` stands as it is.
 */
export function checkYaml<S extends z.ZodType>(
  file: string,
  text: string,
  schema: S,
): CheckedYaml<z.output<S>> {
  const lines = new LineCounter();
  const document = parseDocument(text, { lineCounter: lines });
  const syntax = [...document.errors, ...document.warnings].map((error) => ({
    file,
    line: error.linePos?.[0].line ?? 0,
    field: '',
    message: error.message.split('\n', 1)[0]?.replace(/ at line \d+, column \d+:?$/, '') ?? error.code,
  }));
  if (syntax.length > 0) {
    return { ok: false, problems: syntax };
  }
  let raw: unknown;
  try {
    raw = document.toJS();
  } catch (error) {
    return { ok: false, problems: [{ file, line: 0, field: '', message: (error as Error).message }] };
  }
  const problemAt = (path: FieldPath, message: string): Problem => ({
    file,
    line: lineOf(document, lines, path),
    field: formatPath(path),
    message,
  });
  const result = schema.safeParse(raw);
  if (result.success) {
    return { ok: true, value: result.data, problemAt };
  }
  const problems = result.error.issues.flatMap((issue) => {
    if (issue.code === 'unrecognized_keys') {
      return issue.keys.map((key) => problemAt([...issue.path, key], 'unknown key'));
    }
    const path = issue.code === 'invalid_key' ? issue.path.slice(0, -1) : issue.path;
    const whole = issue.code === 'custom' && issue.params?.whole === true;
    return [
      problemAt(
        path,
        whole ? issue.message : `expected ${issue.message}, got ${show(valueAt(raw, issue.path))}`,
      ),
    ];
  });
  return { ok: false, problems: problems.sort((a, b) => a.line - b.line) };
}

/** `sources.static.file`, `pods[0].ips[1]`, `labels["a.b/c"]`. */
export function formatPath(path: FieldPath): string {
  return path.reduce<string>((text, part) => {
    if (typeof part === 'number') {
      return `${text}[${part}]`;
    }
    const name = String(part);
    if (!/^[\w-]+$/.test(name)) {
      return `${text}[${JSON.stringify(name)}]`;
    }
    return text === '' ? name : `${text}.${name}`;
  }, '');
}

/** Line of the key at `path`, else of the nearest thing around it that exists. */
function lineOf(document: Document, lines: LineCounter, path: FieldPath): number {
  let node: unknown = document.contents;
  let offset = startOf(node) ?? 0;
  for (const part of path) {
    node = isAlias(node) ? node.resolve(document) : node;
    if (isMap(node)) {
      const pair = node.items.find(({ key }) => isScalar(key) && String(key.value) === String(part));
      if (pair === undefined) {
        break;
      }
      offset = startOf(pair.key) ?? offset;
      node = pair.value;
    } else {
      const item = (node as { items?: unknown[] } | null)?.items?.[Number(part)];
      if (item === undefined) {
        break;
      }
      offset = startOf(item) ?? offset;
      node = item;
    }
  }
  return lines.linePos(offset).line;
}

function startOf(node: unknown): number | undefined {
  return (node as Node | null)?.range?.[0];
}

function valueAt(raw: unknown, path: FieldPath): unknown {
  let value = raw;
  for (const part of path) {
    if (typeof value !== 'object' || value === null || !Object.hasOwn(value, part)) {
      return undefined;
    }
    value = (value as Record<PropertyKey, unknown>)[part];
  }
  return value;
}

function show(value: unknown): string {
  if (value === undefined || value === null) {
    return 'nothing';
  }
  if (Array.isArray(value)) {
    return value.length === 0 ? 'an empty list' : 'a list';
  }
  return typeof value === 'object' ? 'a mapping' : JSON.stringify(value);
}
