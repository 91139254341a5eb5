/** What the documentation names is there. */

import { existsSync, readdirSync, readFileSync } from 'node:fs';
import { basename, dirname, join } from 'node:path';
import { expect, test } from 'vitest';

const DOCUMENTS = [
  'README.md',
  'CONTRIBUTING.md',
  'CHANGELOG.md',
  'deploy/chart/README.md',
  'test/lab/README.md',
  'test/lab/kube-proxy/README.md',
  ...readdirSync('docs', { recursive: true, encoding: 'utf8' })
    .filter((name) => name.endsWith('.md'))
    .map((name) => join('docs', name)),
];

/** Of the repository: `src/kernel/tcx.ts`, `bpf/`, `test/unit/…`; `build/` and `dist/` are made. */
const PATH = /(?<![\w./-])(?:src|bpf|native|test|scripts|deploy|docs|examples|proto|bin)\/[\w./-]*[\w/]/g;
const LINK = /\]\(([^)#:]+)(?:#[^)]*)?\)/g;

function missing(document: string): string[] {
  const text = readFileSync(document, 'utf8');
  const paths = [...text.matchAll(PATH)].map(([path]) => path);
  const links = [...text.matchAll(LINK)].map(([, link = '']) => join(dirname(document), link));
  return [...paths, ...links].filter((path) => !existsSync(path)).map((path) => `${document}: ${path}`);
}

test('every path in the documentation, and every link, leads to something', () => {
  expect(DOCUMENTS.length).toBeGreaterThan(15);
  expect(DOCUMENTS.flatMap(missing)).toEqual([]);
});

test('every file that is named without its folder is somewhere', () => {
  const folders = ['src', 'bpf', 'native', 'test', 'deploy', 'proto'];
  const names = new Set(
    folders.flatMap((folder) =>
      readdirSync(folder, { recursive: true, encoding: 'utf8' }).map((path) => basename(path)),
    ),
  );
  const wrong = DOCUMENTS.flatMap((document) =>
    [...readFileSync(document, 'utf8').matchAll(/`([\w-]+(?:\.test)?\.(?:ts|cc|hh|bpf\.c))`/g)]
      .filter(([, name = '']) => !names.has(name))
      .map(([, name]) => `${document}: ${name}`),
  );
  expect(wrong).toEqual([]);
});

test('every document is reached from the README or from another one', () => {
  const linked = new Set(
    DOCUMENTS.flatMap((document) =>
      [...readFileSync(document, 'utf8').matchAll(LINK)].map(([, link = '']) =>
        join(dirname(document), link),
      ),
    ),
  );
  const alone = DOCUMENTS.filter(
    (document) => document.startsWith('docs/') && !document.startsWith('docs/adr/') && !linked.has(document),
  );
  expect(alone).toEqual([]);
});
