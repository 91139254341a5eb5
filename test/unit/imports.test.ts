import { readdirSync, readFileSync } from 'node:fs';
import { dirname, join, normalize } from 'node:path';
import { fileURLToPath } from 'node:url';
import { expect, test } from 'vitest';

const SRC = fileURLToPath(new URL('../../src', import.meta.url));

/** Folder (or file) of src/ to what it may import besides `base`: at run time, and for its types only. */
const MAY_IMPORT: Readonly<Record<string, { values: readonly string[]; types?: readonly string[] }>> = {
  base: { values: [] },
  native: { values: [] },
  net: { values: [] },
  kernel: { values: ['native', 'net'] },
  pods: { values: ['native', 'net'] },
  runtimes: { values: ['native', 'net', 'kernel', 'pods'] },
  datapath: { values: ['native', 'net', 'kernel', 'pods', 'runtimes'] },
  reconcile: { values: ['native', 'net', 'kernel', 'pods', 'runtimes', 'datapath'] },
  drain: { values: ['pods'], types: ['net', 'datapath', 'reconcile'] },
  identity: { values: ['net', 'pods'], types: ['datapath', 'reconcile'] },
  cluster: { values: ['pods'], types: ['reconcile'] },
  telemetry: { values: [], types: ['pods', 'reconcile'] },
  config: { values: ['net', 'pods'] },
  cni: { values: [] },
  supervise: { values: ['native', 'net', 'config/config.ts'], types: ['config'] },
  capacity: { values: ['net', 'pods'], types: ['config'] },
  lifecycle: { values: ['net', 'pods'], types: ['reconcile'] },
  instances: { values: ['net', 'datapath', 'config/listeners.ts'], types: ['config'] },
  api: {
    values: ['net', 'pods', 'identity', 'instances/errors.ts'],
    types: [
      'native',
      'datapath',
      'reconcile',
      'drain',
      'config',
      'telemetry',
      'instances',
      'supervise',
      'capacity',
    ],
  },
  doctor: { values: ['native', 'net', 'kernel', 'pods', 'datapath', 'config', 'cni'] },
  'bug-report': { values: ['native', 'net', 'kernel', 'pods', 'datapath', 'config', 'telemetry'] },
  conformance: { values: ['native', 'net', 'client', 'api/grpc-protos.ts'] },
  client: { values: ['native', 'net', 'api/client.ts'], types: ['identity', 'api'] },
  proxy: { values: ['net', 'client'] },
  webhook: { values: ['pods', 'reconcile/foretold.ts'] },
  agent: {
    values: [
      'native',
      'net',
      'kernel',
      'pods',
      'runtimes',
      'datapath',
      'reconcile',
      'drain',
      'identity',
      'instances',
      'lifecycle',
      'capacity',
      'cluster',
      'telemetry',
      'config',
      'cni',
      'supervise',
      'api',
    ],
  },
  cli: {
    values: [
      'native',
      'net',
      'kernel',
      'pods',
      'config',
      'cni',
      'supervise',
      'telemetry',
      'api',
      'client',
      'doctor',
      'proxy',
      'conformance',
      'bug-report',
      'webhook',
      'agent',
    ],
    types: ['runtimes', 'datapath', 'reconcile', 'identity', 'capacity'],
  },
};

/** Packages and addons that one file alone may load. */
const ONLY_FROM: readonly (readonly [RegExp, readonly string[]])[] = [
  [/^netlink$/, ['kernel/netlink.ts', 'kernel/netlink-messages.ts']],
  [/^ipaddr\.js$/, ['net/ip.ts']],
  [/^fastify$/, ['api/http.ts', 'webhook/server.ts']],
  [/^undici$/, ['api/client.ts']],
  [/^prom-client$/, ['telemetry/metrics.ts']],
  [/^@peculiar\/x509$/, ['webhook/certificates.ts']],
  [/^cli-progress$/, ['cli/progress.ts']],
  [/^tar-stream$/, ['bug-report/archive.ts']],
];

interface Import {
  readonly file: string;
  readonly specifier: string;
  /** Path below src/ of a relative import. */
  readonly target: string | undefined;
  readonly typeOnly: boolean;
}

const IMPORT =
  /(?:^|\n)\s*(import|export)\s+(type\s+)?(?:[^'";]*?\sfrom\s+)?'([^']+)'|\bimport\(\s*'([^']+)'\s*\)/g;

const files = readdirSync(SRC, { recursive: true, encoding: 'utf8' }).filter((file) => file.endsWith('.ts'));
const imports: readonly Import[] = files.flatMap((file) =>
  [...readFileSync(join(SRC, file), 'utf8').matchAll(IMPORT)].map((match) => {
    const specifier = match[3] ?? match[4] ?? '';
    const target = specifier.startsWith('.')
      ? normalize(join(dirname(file), specifier)).replace(/\.js$/, '.ts')
      : undefined;
    return { file, specifier, target, typeOnly: match[2] !== undefined };
  }),
);

const stageOf = (file: string): string => file.split('/', 1)[0] ?? file;

test('every folder of src has its place in the order of stages', () => {
  expect([...new Set(files.map(stageOf))].filter((stage) => !(stage in MAY_IMPORT))).toEqual([]);
});

test('imports point one way only, as the design says', () => {
  const wrong = imports.flatMap(({ file, target, typeOnly }) => {
    if (target === undefined || stageOf(target) === stageOf(file)) {
      return [];
    }
    const { values = [], types = [] } = MAY_IMPORT[stageOf(file)] ?? {};
    const allowed = ['base', ...values, ...(typeOnly ? types : [])];
    return allowed.includes(stageOf(target)) || allowed.includes(target) ? [] : [`${file} imports ${target}`];
  });
  expect(wrong).toEqual([]);
  expect(imports.length).toBeGreaterThan(100);
});

test('files do not import each other in a circle, not even types', () => {
  const next = new Map(
    files.map((file) => [
      file,
      imports
        .filter((entry) => entry.file === file)
        .flatMap(({ target }) => (target === undefined ? [] : [target])),
    ]),
  );
  const reaches = (from: string, goal: string, seen: Set<string>): boolean =>
    (next.get(from) ?? []).some((target) => {
      if (target === goal) {
        return true;
      }
      const fresh = !seen.has(target);
      seen.add(target);
      return fresh && reaches(target, goal, seen);
    });
  expect(files.filter((file) => reaches(file, file, new Set()))).toEqual([]);
});

test('what one module is responsible for is loaded by that module alone', () => {
  const wrong = imports.filter(({ file, specifier, typeOnly }) =>
    ONLY_FROM.some(([name, owners]) => !typeOnly && name.test(specifier) && !owners.includes(file)),
  );
  expect(wrong.map(({ file, specifier }) => `${file} imports ${specifier}`)).toEqual([]);
});
