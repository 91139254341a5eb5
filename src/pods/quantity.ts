/** Quantities as Kubernetes writes them (k8s.io/apimachinery/pkg/api/resource): `100m`, `0.5`, `64Mi`, `1e3`. */

export interface Resources {
  readonly cpuMillis: number;
  readonly memoryBytes: number;
}

export const NOTHING: Resources = { cpuMillis: 0, memoryBytes: 0 };

const QUANTITY = /^\+?(\d{1,18})(?:\.(\d{0,18}))?(?:(Ki|Mi|Gi|Ti|Pi|Ei|[numkMGTPE])|[eE]([+-]?\d{1,2}))?$/;

/** Powers of ten, and of 1024. */
const DECIMAL: Readonly<Record<string, number>> = {
  n: -9,
  u: -6,
  m: -3,
  k: 3,
  M: 6,
  G: 9,
  T: 12,
  P: 15,
  E: 18,
};
const BINARY = ['Ki', 'Mi', 'Gi', 'Ti', 'Pi', 'Ei'];

/** Thousandths of a processor. Undefined where it is no such quantity, or is more than a number can tell. */
export function parseCpu(text: string): number | undefined {
  return parse(text, 3);
}

/** Bytes. Undefined where it is no such quantity, or is more than a number can tell. */
export function parseMemory(text: string): number | undefined {
  return parse(text, 0);
}

/** In units of 10^-`digits`, rounded up, as the API server does. */
function parse(text: string, digits: number): number | undefined {
  const [, whole, fraction = '', suffix = '', exponent = '0'] = QUANTITY.exec(text) ?? [];
  if (whole === undefined) {
    return undefined;
  }
  const ten = digits - fraction.length + (DECIMAL[suffix] ?? 0) + Number(exponent);
  const two = 10 * (BINARY.indexOf(suffix) + 1);
  const above = BigInt(whole + fraction) * 2n ** BigInt(two) * 10n ** BigInt(Math.max(ten, 0));
  const below = 10n ** BigInt(Math.max(-ten, 0));
  const value = (above + below - 1n) / below;
  return value > BigInt(Number.MAX_SAFE_INTEGER) ? undefined : Number(value);
}

/** As Kubernetes writes it. */
export function memoryText(bytes: number): string {
  return bytes % 2 ** 20 === 0 ? `${bytes / 2 ** 20}Mi` : String(bytes);
}

export function plus(a: Resources, b: Resources): Resources {
  return { cpuMillis: a.cpuMillis + b.cpuMillis, memoryBytes: a.memoryBytes + b.memoryBytes };
}

/** Of each the larger one. */
export function largest(a: Resources, b: Resources): Resources {
  return {
    cpuMillis: Math.max(a.cpuMillis, b.cpuMillis),
    memoryBytes: Math.max(a.memoryBytes, b.memoryBytes),
  };
}

/** For people: `250m`, `96.0 MiB`. */
export function resourcesText({ cpuMillis, memoryBytes }: Resources): string {
  return `${cpuMillis}m, ${(memoryBytes / 2 ** 20).toFixed(1)} MiB`;
}
