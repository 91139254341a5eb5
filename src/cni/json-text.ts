/**
 * Where things stand in a JSON text, so that it can be edited without writing the rest of it anew: numbers keep their
 * digits, keys their order and their doubles. Texts are latin1 strings of the file's bytes: everything that structures
 * JSON is ASCII, and no byte of a longer UTF-8 sequence is.
 */

/** Offsets of the first character and of the one after the last. */
export interface Span {
  readonly start: number;
  readonly end: number;
}

const SPACE = /[ \t\r\n]*/y;
const STRING = /"(?:[^"\\]|\\.)*"/y;
const SCALAR = /[^ \t\r\n,:\]}]+/y;

/** `text` must be valid JSON, and an object. Of a key that stands twice the last counts, as for every runtime. */
export function memberSpan(text: string, key: string): Span | undefined {
  let found: Span | undefined;
  let at = skip(SPACE, text, skip(SPACE, text, 0) + 1);
  while (text[at] === '"') {
    const keyEnd = skip(STRING, text, at);
    const name = JSON.parse(Buffer.from(text.slice(at, keyEnd), 'latin1').toString('utf8')) as string;
    const start = skip(SPACE, text, skip(SPACE, text, keyEnd) + 1);
    const end = valueEnd(text, start);
    if (name === key) {
      found = { start, end };
    }
    at = afterComma(text, end);
  }
  return found;
}

/** The elements of the array at `span`. */
export function elementSpans(text: string, span: Span): Span[] {
  const spans: Span[] = [];
  let start = skip(SPACE, text, span.start + 1);
  while (start < span.end - 1) {
    const end = valueEnd(text, start);
    spans.push({ start, end });
    start = afterComma(text, end);
  }
  return spans;
}

/** The text around the span stays byte for byte. */
export function replaceSpan(text: string, { start, end }: Span, by: string): string {
  return text.slice(0, start) + by + text.slice(end);
}

function afterComma(text: string, end: number): number {
  const next = skip(SPACE, text, end);
  return text[next] === ',' ? skip(SPACE, text, next + 1) : next;
}

function valueEnd(text: string, start: number): number {
  let depth = 0;
  let at = start;
  do {
    at = skip(SPACE, text, at);
    const character = text[at];
    if (character === '"') {
      at = skip(STRING, text, at);
    } else if (character === '{' || character === '[') {
      depth++;
      at++;
    } else if (character === '}' || character === ']') {
      depth--;
      at++;
    } else if (character === ',' || character === ':') {
      at++;
    } else {
      at = skip(SCALAR, text, at);
    }
  } while (depth > 0);
  return at;
}

/** Where a match of the sticky `pattern` at `from` ends. RangeError where there is none: the text was not JSON. */
function skip(pattern: RegExp, text: string, from: number): number {
  pattern.lastIndex = from;
  if (!pattern.test(text)) {
    throw new RangeError(`no JSON at offset ${from}`);
  }
  return pattern.lastIndex;
}
