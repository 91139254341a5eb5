/** What is a secret in a text or a value that others have written, and taking it out. */

/** A pod's annotations are for any program of the cluster, and some keep whole manifests in them; ours are harmless. */
const OUR_ANNOTATIONS = 'nodesentry.io/';
const REMOVED = '(removed)';
/** A shorter one would be found in places where it is none. */
const MIN_KNOWN_LENGTH = 6;

const SECRET_NAME =
  /token|secret|passw|passphrase|credential|bearer|authorization|(?:private|api|access)[-_]?key|key-data|certificate-data|^(?:.*[^a-z])?(?:auth|key|pwd)$/i;
const PATH_NAME = /(?:file|path|dir)$/i;
const ANNOTATIONS_NAME = /(?:^|[^a-z])annotations$|podAnnotations$/i;

/** Secrets that are known by their form, wherever they stand. */
const FORMS: readonly (readonly [RegExp, string])[] = [
  [/-----BEGIN [A-Z ]{1,40}-----[\s\S]*?(?:-----END [A-Z ]{1,40}-----|$)/g, REMOVED],
  [/\beyJ[\w-]{8,}(?:\.[\w-]*){0,2}/g, REMOVED],
  [/\b(Bearer|Basic)\s{1,4}[\w.~+/=-]{6,}/gi, `$1 ${REMOVED}`],
  [/\b([a-z][a-z\d+.-]{0,20}:\/\/)[^\s/@"']{1,512}@/gi, `$1${REMOVED}@`],
  [/\b(?:gh[opsu]_|github_pat_|glpat-|AKIA|ASIA|xox[abp]-)[\w-]{10,}/g, REMOVED],
  [
    /((?:token|secret|passw(?:or)?d|passphrase|credentials?|(?:private|api|access)[-_]?key|key-data|authorization)[\w-]{0,40}["'\\]{0,4}\s{0,4}[:=]\s{0,4}|--[\w-]{0,40}(?:token|secret|password|key)[\w-]{0,40}\s)(?!\(removed\)|(?:Bearer|Basic) \(removed\))("(?:[^"\\]|\\.)*"|'[^']*'|[^\s,;}&]+)/gi,
    `$1${REMOVED}`,
  ],
];

/** Secrets that were found where they are kept, such as a kubeconfig: taken out wherever else they turn up. */
export class Secrets {
  readonly #known: readonly string[];

  /** `keepers`: parsed files and environments. Values under a secret's name in them are known from here on. */
  constructor(keepers: readonly unknown[]) {
    const known = new Set<string>();
    const note = (text: string): void => {
      if (text.length >= MIN_KNOWN_LENGTH) {
        known.add(text);
      }
    };
    for (const keeper of keepers) {
      walk(keeper, note, (text) => text);
    }
    // A longer one may hold a shorter one.
    this.#known = [...known].sort((a, b) => b.length - a.length);
  }

  /** A text of any kind. */
  outOf(text: string): string {
    const unknown = this.#known.reduce((rest, secret) => rest.replaceAll(secret, REMOVED), text);
    return FORMS.reduce((rest, [form, instead]) => rest.replace(form, instead), unknown);
  }

  /** A value such as JSON.parse gives. */
  outOfValue(value: unknown): unknown {
    return walk(
      value,
      () => undefined,
      (text) => {
        const inner = /^\s*[[{]/.test(text) ? parsed(text) : undefined;
        return inner === undefined ? this.outOf(text) : JSON.stringify(this.outOfValue(inner));
      },
    );
  }
}

/** Undefined where it is no JSON. */
export function parsed(text: string): unknown {
  try {
    return JSON.parse(text) as unknown;
  } catch {
    return undefined;
  }
}

type Found = (secret: string) => void;
type Plain = (text: string) => string;

/** A copy without the values of secrets, which `found` is told; `plain` has a look at every other text. */
function walk(value: unknown, found: Found, plain: Plain): unknown {
  if (typeof value === 'string') {
    return plain(value);
  }
  if (Array.isArray(value)) {
    return value.map((item) => walk(item, found, plain));
  }
  if (typeof value !== 'object' || value === null) {
    return value;
  }
  return Object.fromEntries(
    Object.entries(value).map(([name, inner]) => [plain(name), walkField(name, inner, found, plain)]),
  );
}

function walkField(name: string, value: unknown, found: Found, plain: Plain): unknown {
  if (/^env(?:ironment)?$/i.test(name) && typeof value === 'object' && value !== null) {
    return Array.isArray(value) ? value.map((entry) => variable(entry, found)) : hidden(value, found);
  }
  if (ANNOTATIONS_NAME.test(name) && typeof value === 'object' && value !== null && !Array.isArray(value)) {
    return Object.fromEntries(
      Object.entries(value).map(([key, text]) => [
        plain(key),
        key.startsWith(OUR_ANNOTATIONS) ? walk(text, found, plain) : hidden(text, () => undefined),
      ]),
    );
  }
  const isPath = typeof value === 'string' && PATH_NAME.test(name) && value.startsWith('/');
  return SECRET_NAME.test(name) && !isPath ? hidden(value, found) : walk(value, found, plain);
}

/** Of a container's `env`: the name tells which one it is. */
function variable(entry: unknown, found: Found): unknown {
  return typeof entry === 'object' && entry !== null && 'name' in entry && typeof entry.name === 'string'
    ? { ...(hidden(entry, found) as object), name: entry.name }
    : hidden(entry, found);
}

/** The form stays, every text and number in it goes. */
function hidden(value: unknown, found: Found): unknown {
  if (Array.isArray(value)) {
    return value.map((item) => hidden(item, found));
  }
  if (typeof value === 'object' && value !== null) {
    return Object.fromEntries(Object.entries(value).map(([name, inner]) => [name, hidden(inner, found)]));
  }
  if (typeof value !== 'string' && typeof value !== 'number') {
    return value;
  }
  if (value !== '') {
    found(String(value));
  }
  return REMOVED;
}
