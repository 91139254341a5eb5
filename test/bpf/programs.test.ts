import { execFileSync } from 'node:child_process';
import { copyFileSync, existsSync, mkdirSync, readdirSync, readFileSync, rmSync } from 'node:fs';
import { join } from 'node:path';
import { afterEach, beforeEach, describe, expect, it } from 'vitest';
import { END_BYTES, END_LAYOUT } from '../../src/client/socket-identity.js';
import { type DatapathPrograms, MANIFEST } from '../../src/datapath/manifest.js';
import { LEFT_TO_CONNTRACK, LEFT_TO_LOOKUP } from '../../src/kernel/notrack-rules.js';
import { openObjectFile } from '../../src/kernel/pins.js';
import { openPrograms, type ProgramsOptions } from '../../src/kernel/programs.js';
import { BpfMap, BpfProgram, isBpffs, programInfo } from '../../src/native/bpf.js';
import { Cleanup, loadProbe, temporaryBpffs, temporaryFolder, u32 } from '../unit/native-lab.js';
import { MARK, OBJECTS } from './datapath-lab.js';

const MAPS = Object.keys(MANIFEST.maps).sort();

const cleanup = new Cleanup();
let bpffs: string;

beforeEach(() => {
  bpffs = join(temporaryBpffs(cleanup), 'nodesentry');
});

afterEach(() => cleanup.run());

function open(rest: Partial<Omit<ProgramsOptions, 'set'>> = {}): DatapathPrograms {
  return cleanup.owned(openPrograms({ set: MANIFEST, bpffs, objects: OBJECTS, mark: MARK, ...rest }));
}

function pins(folder: string): string[] {
  return readdirSync(join(bpffs, 'v1', folder)).sort();
}

/** Ids by name: what runs, not what is called the same. */
function ids(opened: DatapathPrograms): Record<string, number> {
  const handles = [...Object.entries(opened.maps), ...Object.entries(opened.programs)];
  return Object.fromEntries(handles.map(([name, { id }]) => [name, id]));
}

describe('the first agent', () => {
  it('loads everything and pins it where the next one looks', () => {
    const opened = open();
    expect(opened.takenOver).toBe(false);
    expect(pins('maps')).toEqual(MAPS);
    expect(pins('links')).toEqual([]);
    expect(pins('programs')).toEqual(
      Object.entries(opened.programs)
        .map(([name, program]) => `${name}-${program.tag}-40-40`)
        .sort(),
    );
    expect(opened.linksPath).toBe(join(bpffs, 'v1/links'));
    expect(opened.removeStalePrograms()).toEqual([]);
  });

  it('has the struct that proxies read as the client for Node.js reads it', () => {
    const object = cleanup.owned(openObjectFile(OBJECTS, 'identity-option'));
    const { size, fields } = object.layout('nodesentry_end');
    expect(size).toBe(END_BYTES);
    for (const [name, offset] of Object.entries(END_LAYOUT)) {
      expect([name, fields.get(name)?.offset]).toEqual([name, offset]);
    }
  });

  it('mounts a bpffs where there is none', () => {
    const path = join(temporaryFolder(cleanup), 'bpf');
    cleanup.add(path, () => isBpffs(path) && execFileSync('umount', [path]));
    open({ bpffs: path });
    expect(isBpffs(path)).toBe(true);
    expect(existsSync(join(path, 'v1/maps/flows'))).toBe(true);
  });

  it('loads one set of maps for all of its programs', () => {
    const opened = open();
    const mapsOf = (program: BpfProgram): number[] => {
      const shown = execFileSync('bpftool', ['-j', 'prog', 'show', 'id', String(program.id)]);
      return (JSON.parse(shown.toString()) as { map_ids: number[] }).map_ids;
    };
    const { canary, identity_option, ...attached } = opened.programs;
    expect(canary.name).toBe('canary'); // only passes frames on
    expect(mapsOf(identity_option)).toContain(opened.maps.flows.id); // gives nothing to a listener
    for (const program of Object.values(attached)) {
      expect(mapsOf(program)).toContain(opened.maps.flows.id);
      expect(mapsOf(program)).toContain(opened.maps.listeners.id);
    }
  });
});

describe('the next agent', () => {
  it('takes the same programs and maps over, after the first has gone', () => {
    const first = open();
    const before = { ids: ids(first), programs: pins('programs') };
    first.maps.endpoints.set(u32(7), Buffer.alloc(first.layouts.endpoint.size, 1));
    first.close();
    const second = open();
    expect(second.takenOver).toBe(true);
    expect({ ids: ids(second), programs: pins('programs') }).toEqual(before);
    expect(second.maps.endpoints.get(u32(7))).toEqual(Buffer.alloc(second.layouts.endpoint.size, 1));
    expect(second.removeStalePrograms()).toEqual([]);
    expect(pins('programs')).toEqual(before.programs);
  });

  it('with another mark brings programs of its own to the same maps; the old pins go when it says so', () => {
    const first = open();
    const before = { ids: ids(first), programs: pins('programs') };
    first.close();
    const second = open({ mark: { value: 0x400, mask: 0xf00 } });
    for (const name of MAPS) {
      expect(ids(second)[name]).toBe(before.ids[name]);
    }
    for (const [name, program] of Object.entries(second.programs)) {
      expect(program.id).not.toBe(before.ids[name]);
      expect(program.name).toBe(name);
    }
    expect(pins('programs')).toHaveLength(2 * before.programs.length);
    expect([...second.removeStalePrograms()].sort()).toEqual(before.programs);
    expect(pins('programs')).toEqual(
      Object.entries(second.programs)
        .map(([name, program]) => `${name}-${program.tag}-400-f00`)
        .sort(),
    );
    expect(second.removeStalePrograms()).toEqual([]);
  });

  it('takes over from one that knew fewer maps, with programs of its own', () => {
    const first = open();
    const before = ids(first);
    first.close();
    rmSync(join(bpffs, 'v1/maps/deliveries'));
    const second = open();
    expect(second.takenOver).toBe(true);
    expect(ids(second).flows).toBe(before.flows);
    expect(ids(second).pod_egress).not.toBe(before.pod_egress);
  });

  it('replaces programs that refer to a map whose pin is missing', () => {
    const first = open();
    const before = ids(first);
    rmSync(join(bpffs, 'v1/maps/flows'));
    first.close();
    const second = open();
    const after = ids(second);
    expect(second.takenOver).toBe(false);
    expect(after.endpoints).toBe(before.endpoints);
    expect(after.flows).not.toBe(before.flows);
    expect(after.pod_egress).not.toBe(before.pod_egress);
    const pinned = cleanup.owned(
      BpfProgram.openPinned(join(bpffs, 'v1/programs', pins('programs').find(isEgress) ?? '')),
    );
    expect(pinned.id).toBe(after.pod_egress);
  });

  it('loads a program whose pin is missing, and keeps the others', () => {
    const first = open();
    const before = ids(first);
    rmSync(join(bpffs, 'v1/programs', pins('programs').find(isEgress) ?? ''));
    first.close();
    const { pod_egress: fresh, ...after } = ids(open());
    const { pod_egress: old, ...others } = before;
    expect(after).toEqual(others);
    expect(fresh).not.toBe(old);
  });
});

const isEgress = (pin: string) => pin.startsWith('pod_egress-');

describe('after closing', () => {
  it('no descriptor is left, and without pins no program either', () => {
    const descriptors = () => readdirSync('/proc/self/fd').length;
    const before = descriptors();
    const opened = open();
    const { pod_egress: id = 0 } = ids(opened);
    opened.close();
    opened.close();
    expect(descriptors()).toBe(before);
    expect(programInfo(id)?.name).toBe('pod_egress');
  });

  it('none is left either of an agent that was refused half way', () => {
    const objects = temporaryFolder(cleanup);
    copyFileSync(join(OBJECTS, 'intercept.bpf.o'), join(objects, 'intercept.bpf.o'));
    open().close();
    const before = readdirSync('/proc/self/fd').length;
    expect(() => open({ objects })).toThrow(expect.objectContaining({ code: 'OBJECT_MISSING' }));
    expect(readdirSync('/proc/self/fd')).toHaveLength(before);
  });
});

describe('refuses', () => {
  it('a layout of a newer agent, touching nothing', () => {
    mkdirSync(join(bpffs, 'v2'), { recursive: true });
    expect(() => open()).toThrow(
      expect.objectContaining({
        code: 'LAYOUT_NEWER',
        message: `${bpffs}/v2 belongs to a newer agent: run that one, or its "nodesentry cleanup" first`,
      }),
    );
    expect(readdirSync(bpffs)).toEqual(['v2']);
  });

  it('but not an older one, or a folder that is none', () => {
    for (const name of ['v0', 'v2x', 'other']) {
      mkdirSync(join(bpffs, name), { recursive: true });
    }
    expect(open().takenOver).toBe(false);
  });

  it('to work without its objects, naming the missing one and what to do', () => {
    const objects = temporaryFolder(cleanup);
    expect(() => open({ objects })).toThrow(
      expect.objectContaining({
        code: 'OBJECT_MISSING',
        message: `${objects}/intercept.bpf.o does not exist: run "make build"`,
      }),
    );
    expect(existsSync(bpffs)).toBe(false);
  });

  it('a pinned map of another shape, naming it and what to do', () => {
    mkdirSync(join(bpffs, 'v1/maps'), { recursive: true });
    const probe = cleanup.owned(loadProbe());
    const numbers = cleanup.owned(probe.map('numbers'));
    numbers.pin(join(bpffs, 'v1/maps/endpoints'));
    expect(() => open()).toThrow(
      expect.objectContaining({
        code: 'LAYOUT_MISMATCH',
        message: expect.stringMatching(/v1\/maps\/endpoints .*nodesentry cleanup/),
      }),
    );
    const pinned = cleanup.owned(BpfMap.openPinned(join(bpffs, 'v1/maps/endpoints')));
    expect(pinned.id).toBe(numbers.id);
    expect(pins('programs')).toEqual([]);
  });
});

it.each([
  ['PRIORITY_LEFT_TO_CONNTRACK', LEFT_TO_CONNTRACK],
  ['PRIORITY_LEFT_TO_LOOKUP', LEFT_TO_LOOKUP],
])('the ruleset knows what programs say of a packet by the priority that they set (%s)', (name, written) => {
  const value = openObjectFile(OBJECTS, MANIFEST.main).enumValues('priority').get(name) ?? 0;
  expect(written).toBe(`${(value >>> 16).toString(16)}:${(value & 0xffff).toString(16)}`);
});

it('the layouts are those of the objects', () => {
  const { layouts } = open();
  const header = readFileSync('bpf/include/layout.h', 'utf8');
  const declared = [...header.matchAll(/^\s+VERDICT_(\w+),/gm)].map(([, name]) => name);
  expect(layouts.verdicts).toEqual(declared.filter((name) => name !== 'COUNT'));
  expect(layouts.flags).toEqual({
    failureOpen: 1,
    bridged: 2,
    sinceBirth: 4,
    dropOther: 8,
    shaped: 16,
    inbound: 32,
    leaving: 64,
    closing: 128,
    selective: 256,
    observed: 512,
    udpOutbound: 1024,
    udpInbound: 2048,
  });
  expect(layouts.endpoint.size).toBe(20);
  expect(layouts.slots).toEqual({ perInstance: 4, inbound: 2, ipv6: 1 });
});
