/** Files as parts: the configuration, and what the agent and the CNI plugin keep. */

import { closeSync, constants, fstatSync, lstatSync, openSync, readdirSync, readSync } from 'node:fs';
import { join } from 'node:path';
import { type Format, type Part, READ_BYTES, reasonOf, type Taken } from './part.js';

/** Of one folder: a part for each of more pods than a node has. */
const MAX_FILES = 1_000;

/** `follow`: whether it may be a link, as what a config map is mounted by. */
export function filePart(name: string, path: string, format: Format, follow = false): Part {
  return { name, from: path, format, take: () => readBounded(path, follow) };
}

/** Nothing but a regular file is opened for longer than it takes to see that: reading a pipe would wait. */
export function readBounded(path: string, follow = false): Taken {
  const flags = constants.O_RDONLY | constants.O_NONBLOCK | (follow ? 0 : constants.O_NOFOLLOW);
  const fd = openSync(path, flags);
  try {
    const file = fstatSync(fd);
    if (!file.isFile()) {
      throw new Error('not a regular file');
    }
    if (file.size > READ_BYTES) {
      throw new Error(`${file.size} bytes: left out, more than ${READ_BYTES}`);
    }
    // Files of /proc have no size.
    const buffer = Buffer.alloc(file.size === 0 ? 1 << 16 : file.size);
    let length = 0;
    for (let count = -1; count !== 0 && length < buffer.length; length += count) {
      count = readSync(fd, buffer, length, buffer.length - length, null);
    }
    return { text: buffer.toString('utf8', 0, length), note: '' };
  } finally {
    closeSync(fd);
  }
}

/** Every regular file below `folder`, and a listing that has the rest, too: sockets, links. */
export function folderParts(name: string, folder: string, format: (file: string) => Format): Part[] {
  const found = below(folder);
  const files = found.flatMap(({ path, kind }) => (kind === 'file' ? [path] : []));
  const listing = found.map(
    ({ path, kind, size, mode, mtime }) => `${mode} ${size} ${mtime} ${kind} ${path}`,
  );
  const note =
    files.length > MAX_FILES ? `${files.length} files, of which the report has the first ${MAX_FILES}` : '';
  return [
    {
      name: `${name}/listing.txt`,
      from: folder,
      format: 'text',
      take: () => {
        readdirSync(folder);
        return { text: `${listing.join('\n')}\n`, note };
      },
    },
    ...files
      .slice(0, MAX_FILES)
      .map((file) => filePart(`${name}/files/${file}`, join(folder, file), format(file))),
  ];
}

interface Entry {
  readonly path: string;
  readonly kind: 'file' | 'socket' | 'link' | 'folder' | 'other' | 'gone';
  readonly size: number;
  readonly mode: string;
  readonly mtime: string;
}

/** Empty where the folder cannot be read. */
function below(folder: string): Entry[] {
  try {
    return readdirSync(folder, { recursive: true, encoding: 'utf8' })
      .sort()
      .map((path) => entry(folder, path));
  } catch {
    return [];
  }
}

function entry(folder: string, path: string): Entry {
  try {
    const stat = lstatSync(join(folder, path));
    const kind = stat.isFile()
      ? 'file'
      : stat.isSocket()
        ? 'socket'
        : stat.isSymbolicLink()
          ? 'link'
          : stat.isDirectory()
            ? 'folder'
            : 'other';
    const mode = (stat.mode & 0o7777).toString(8).padStart(4, '0');
    return { path, kind, size: stat.size, mode, mtime: stat.mtime.toISOString() };
  } catch (error) {
    return { path: `${path}: ${reasonOf(error)}`, kind: 'gone', size: 0, mode: '----', mtime: '-' };
  }
}
