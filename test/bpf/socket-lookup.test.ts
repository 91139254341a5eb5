import { execFileSync } from 'node:child_process';
import { join } from 'node:path';
import { afterEach, beforeEach, describe, expect, it } from 'vitest';
import type { DatapathPrograms } from '../../src/datapath/manifest.js';
import { SocketLookup } from '../../src/kernel/socket-lookup.js';
import type { BpfProgram } from '../../src/native/bpf.js';
import { Cleanup, Netns, temporaryBpffs } from '../unit/native-lab.js';
import { openIn } from './datapath-lab.js';

const cleanup = new Cleanup();
let netns: Netns;
let linksPath: string;
/** The programs of this agent, and of one with another mark after it. */
let before: DatapathPrograms['programs'];
let after: typeof before;

beforeEach(() => {
  netns = cleanup.owned(new Netns());
  const bpffs = join(temporaryBpffs(cleanup), 'nodesentry');
  const first = openIn(cleanup, bpffs);
  linksPath = first.linksPath;
  before = first.programs;
  after = openIn(cleanup, bpffs, { value: 0x80, mask: 0x80 }).programs;
});

afterEach(() => cleanup.run());

describe('socket lookup', () => {
  let lookup: SocketLookup;

  beforeEach(() => {
    lookup = new SocketLookup(linksPath, 'socket-lookup');
  });

  const attach = (program: BpfProgram) => netns.run(() => lookup.attach(program));
  /** Programs of sk_lookup in the namespace. */
  const attached = () => {
    const shown = JSON.parse(netns.exec('bpftool', '-j', 'link', 'show')) as {
      type: string;
      prog_id: number;
      netns_ino?: number;
    }[];
    const own = Number(/\d+/.exec(netns.exec('readlink', '/proc/self/ns/net'))?.[0]);
    return shown.filter(({ netns_ino }) => netns_ino === own).map(({ prog_id }) => prog_id);
  };

  it('is attached to the namespace of the agent, kept, exchanged and taken off', () => {
    expect(attach(before.socket_lookup)).toBe('attached');
    expect(attach(before.socket_lookup)).toBe('kept');
    expect(attached()).toEqual([before.socket_lookup.id]);
    expect(attach(after.socket_lookup)).toBe('updated');
    expect(attached()).toEqual([after.socket_lookup.id]);
    expect(lookup.detach()).toBe(true);
    expect(attached()).toEqual([]);
    expect(lookup.detach()).toBe(false);
  });

  it('outlives its agent, and the next one takes it over', () => {
    attach(before.socket_lookup);
    lookup = new SocketLookup(linksPath, 'socket-lookup');
    expect(attached()).toEqual([before.socket_lookup.id]);
    expect(attach(before.socket_lookup)).toBe('kept');
    expect(lookup.detach()).toBe(true);
  });

  it('that somebody detached is attached again', () => {
    attach(before.socket_lookup);
    execFileSync('bpftool', ['link', 'detach', 'pinned', join(linksPath, 'socket-lookup')]);
    expect(attached()).toEqual([]);
    expect(attach(before.socket_lookup)).toBe('attached');
    expect(attached()).toEqual([before.socket_lookup.id]);
  });
});
