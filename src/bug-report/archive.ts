/** The archive: a folder in a compressed tar, the list of what is in it first. */

import type { Writable } from 'node:stream';
import { pipeline } from 'node:stream/promises';
import { createGzip } from 'node:zlib';
import { pack } from 'tar-stream';
import type { Collected } from './collect.js';

export interface Heading {
  /** The folder that it unpacks into. */
  readonly folder: string;
  readonly node: string;
  readonly version: string;
  readonly takenAt: Date;
}

export const MANIFEST_NAME = 'manifest.json';

/** `end`: whether `to` is closed after it. */
export async function writeArchive(
  heading: Heading,
  { members, missing }: Collected,
  to: Writable,
  end: boolean,
): Promise<void> {
  const { folder, node, version, takenAt } = heading;
  const contents = members.map(({ name, from, bytes, note }) => ({ name, bytes: bytes.length, from, note }));
  const manifest = {
    format: 1,
    nodesentry: version,
    node,
    takenAt: takenAt.toISOString(),
    contents,
    missing,
  };
  const tar = pack();
  const add = (name: string, bytes: Buffer): void => {
    tar.entry({ name: `${folder}/${name}`, size: bytes.length, mtime: takenAt, mode: 0o600 }, bytes);
  };
  add(MANIFEST_NAME, Buffer.from(`${JSON.stringify(manifest, null, 2)}\n`));
  for (const { name, bytes } of members) {
    add(name, bytes);
  }
  tar.finalize();
  await pipeline(tar, createGzip(), to, { end });
}
