/** Secrets out of a whole part, by its format. */

import { parseDocument, stringify } from 'yaml';
import type { Format } from './part.js';
import { parsed, type Secrets } from './secrets.js';

/** Throws for a text that is not of its format: what is secret in it cannot be told. */
export function redact(text: string, format: Format, secrets: Secrets): string {
  switch (format) {
    case 'json': {
      const value = parsed(text);
      if (value === undefined) {
        throw unreadable('JSON', text);
      }
      return `${JSON.stringify(secrets.outOfValue(value), null, 2)}\n`;
    }
    case 'yaml': {
      const document = parseDocument(text);
      if (document.errors.length > 0) {
        throw unreadable('YAML', text);
      }
      // Comments stay behind: they may hold anything.
      return stringify(secrets.outOfValue(document.toJS()));
    }
    case 'ndjson':
      return text
        .split('\n')
        .map((line) => ndjsonLine(line, secrets))
        .join('\n');
    case 'text':
      return log(text.split('\n'), secrets);
  }
}

function unreadable(format: string, text: string): Error {
  return new Error(
    `not ${format} (${Buffer.byteLength(text)} bytes): left out, since what is secret in it cannot be told`,
  );
}

/** The last one may be half written. */
function ndjsonLine(line: string, secrets: Secrets): string {
  const instead = `(a line of ${line.length} that is no JSON)`;
  return line.trim() === '' ? '' : (jsonLine(line, secrets) ?? instead);
}

function jsonLine(line: string, secrets: Secrets): string | undefined {
  const value = parsed(line);
  return value === undefined ? undefined : JSON.stringify(secrets.outOfValue(value));
}

/** A line of the journal is our JSON behind a time and a name; lines between are one text, as a key is that stands in several. */
function log(lines: readonly string[], secrets: Secrets): string {
  const done: string[] = [];
  let plain: string[] = [];
  const endPlain = (): void => {
    if (plain.length > 0) {
      done.push(secrets.outOf(plain.join('\n')));
      plain = [];
    }
  };
  for (const line of lines) {
    const start = line.indexOf('{');
    const rest = start < 0 ? undefined : jsonLine(line.slice(start), secrets);
    if (rest === undefined) {
      plain.push(line);
    } else {
      endPlain();
      done.push(secrets.outOf(line.slice(0, start)) + rest);
    }
  }
  endPlain();
  return done.join('\n');
}
