/** The container image of every pod in the lab: one layer, one static binary and a busybox; no registry is asked. */

import { createHash } from 'node:crypto';
import {
  copyFileSync,
  cpSync,
  existsSync,
  mkdirSync,
  readFileSync,
  renameSync,
  rmSync,
  statSync,
  symlinkSync,
  writeFileSync,
} from 'node:fs';
import { join } from 'node:path';
import { run } from './exec.js';

/** A name with a host part: containerd would look for a bare one at a registry. */
export const IMAGE = 'localhost/nodesentry-app:1';
const ROOT = join(import.meta.dirname, '../..');
const SOURCE = join(import.meta.dirname, 'app/app.c');
const DATAGRAMS = join(import.meta.dirname, 'app/datagrams.c');
const STREAMS = join(import.meta.dirname, 'app/streams.c');
const LOAD_SOURCE = join(import.meta.dirname, 'app/load.cc');
const HEADERS = join(ROOT, 'include');
export const CACHE = join(ROOT, 'build/lab');
/** What scripts/install-go-tools has built. */
const TOOLS = join(ROOT, '.cache/bin');

/** Compiled once per change of its source; by several at once where they come at the same time. */
export function buildApp(): Promise<string> {
  return compiled('app', [SOURCE, DATAGRAMS, join(HEADERS, 'nodesentry.h')], 'gcc', [
    '-I',
    HEADERS,
    SOURCE,
    DATAGRAMS,
    '-lpthread',
  ]);
}

/** What applications do with connections, each a command: test/lab/app/streams.c. */
export function buildStreams(): Promise<string> {
  return compiled('streams', [STREAMS], 'gcc', [STREAMS]);
}

/** The clients and the server of `make bench`, compiled in the same way. */
export function buildLoad(): Promise<string> {
  return compiled('load', [LOAD_SOURCE], 'g++', ['-std=c++17', LOAD_SOURCE]);
}

async function compiled(
  name: string,
  sources: readonly string[],
  compiler: 'gcc' | 'g++',
  words: readonly string[],
): Promise<string> {
  const binary = join(CACHE, name);
  const own = `${binary}.${process.pid}`;
  mkdirSync(CACHE, { recursive: true });
  const lastChange = Math.max(...sources.map((path) => statSync(path).mtimeMs));
  if (!existsSync(binary) || statSync(binary).mtimeMs < lastChange) {
    await run(compiler, ['-static', '-O2', '-Wall', '-Wextra', '-Werror', '-o', own, ...words]);
    renameSync(own, binary);
  }
  return binary;
}

/** A folder with /bin/app, /bin/load, /bin/busybox and /bin/http3-client: the image's layer, and the base of the microVM's initramfs. */
export async function buildRootfs(into: string): Promise<void> {
  mkdirSync(join(into, 'bin'), { recursive: true });
  for (const folder of ['proc', 'sys', 'dev', 'tmp', 'etc']) {
    mkdirSync(join(into, folder), { recursive: true });
  }
  copyFileSync(await buildApp(), join(into, 'bin/app'));
  copyFileSync(await buildLoad(), join(into, 'bin/load'));
  copyFileSync('/bin/busybox', join(into, 'bin/busybox'));
  copyFileSync(join(TOOLS, 'http3-client'), join(into, 'bin/http3-client'));
  cpSync(join(TOOLS, 'http3-client.files'), into, { recursive: true });
  for (const name of [
    'sh',
    'cat',
    'ip',
    'ls',
    'mount',
    'insmod',
    'stty',
    'poweroff',
    'sleep',
    'tr',
    'wget',
  ]) {
    if (!existsSync(join(into, 'bin', name))) {
      symlinkSync('busybox', join(into, 'bin', name));
    }
  }
}

function sha256(bytes: Buffer): string {
  return createHash('sha256').update(bytes).digest('hex');
}

/**
 * Writes the image as an OCI layout in a tar file (image-spec, image-layout) and returns its path. `command` are the
 * words that the application is started with.
 */
export async function buildImage(directory: string, command: readonly string[] = ['pause']): Promise<string> {
  const rootfs = join(directory, 'rootfs');
  const layout = join(directory, 'oci');
  await buildRootfs(rootfs);
  const blobs = join(layout, 'blobs/sha256');
  mkdirSync(blobs, { recursive: true });
  const layerPath = join(directory, 'layer.tar');
  await run('tar', ['-C', rootfs, '--owner=0', '--group=0', '-cf', layerPath, '.']);

  const put = (bytes: Buffer, mediaType: string): { mediaType: string; digest: string; size: number } => {
    const digest = sha256(bytes);
    writeFileSync(join(blobs, digest), bytes);
    return { mediaType, digest: `sha256:${digest}`, size: bytes.length };
  };
  const json = (value: unknown): Buffer => Buffer.from(JSON.stringify(value));
  const layer = put(readFileSync(layerPath), 'application/vnd.oci.image.layer.v1.tar');
  const config = put(
    json({
      architecture: 'amd64',
      os: 'linux',
      config: { Entrypoint: ['/bin/app'], Cmd: command, Env: ['PATH=/bin'] },
      rootfs: { type: 'layers', diff_ids: [layer.digest] },
    }),
    'application/vnd.oci.image.config.v1+json',
  );
  const manifest = put(
    json({
      schemaVersion: 2,
      mediaType: 'application/vnd.oci.image.manifest.v1+json',
      config,
      layers: [layer],
    }),
    'application/vnd.oci.image.manifest.v1+json',
  );
  const annotations = { 'io.containerd.image.name': IMAGE, 'org.opencontainers.image.ref.name': '1' };
  writeFileSync(
    join(layout, 'index.json'),
    json({ schemaVersion: 2, manifests: [{ ...manifest, annotations }] }),
  );
  writeFileSync(join(layout, 'oci-layout'), json({ imageLayoutVersion: '1.0.0' }));
  const tar = join(directory, 'image.tar');
  await run('tar', ['-C', layout, '-cf', tar, '.']);
  for (const leftover of [rootfs, layout, layerPath]) {
    rmSync(leftover, { recursive: true });
  }
  return tar;
}
