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
      return byLine(text, (line) => jsonLine(line, secrets) ?? `(a line of ${line.length} that is no JSON)`);
    case 'text':
      return secrets.outOf(byLine(text, (line) => logLine(line, secrets)));
  }
}

function unreadable(format: string, text: string): Error {
  return new Error(
    `not ${format} (${Buffer.byteLength(text)} bytes): left out, since what is secret in it cannot be told`,
  );
}

function byLine(text: string, change: (line: string) => string): string {
  return text
    .split('\n')
    .map((line) => (line.trim() === '' ? line : change(line)))
    .join('\n');
}

function jsonLine(line: string, secrets: Secrets): string | undefined {
  const value = parsed(line);
  return value === undefined ? undefined : JSON.stringify(secrets.outOfValue(value));
}

/** A line of the journal is our JSON behind a time and a name. */
function logLine(line: string, secrets: Secrets): string {
  const start = line.indexOf('{');
  const rest = start < 0 ? undefined : jsonLine(line.slice(start), secrets);
  return rest === undefined ? line : line.slice(0, start) + rest;
}
