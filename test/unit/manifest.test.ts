import { readdirSync } from 'node:fs';
import { join } from 'node:path';
import { afterEach, expect, it } from 'vitest';
import { MANIFEST } from '../../src/datapath/manifest.js';
import { linkPin, mapNames, parseLinkPin, programNames } from '../../src/kernel/object-set.js';
import { openObjectFile } from '../../src/kernel/pins.js';
import { Cleanup } from './native-lab.js';

const OBJECTS = join(process.cwd(), 'build/bpf');
const cleanup = new Cleanup();
afterEach(() => cleanup.run());

/** Not every kernel can run them, and the agent does without: resets.ts, listening.ts and splice.ts in src/datapath. */
const LOADED_BY_ITSELF = ['resets.bpf.c', 'listen.bpf.c', 'splice.bpf.c', 'splice-trial.bpf.c'];

it('the manifest names every source in bpf/ that an agent cannot do without, and nothing else', () => {
  const sources = readdirSync('bpf').filter((name) => name.endsWith('.bpf.c'));
  const objects = Object.values(MANIFEST.programs).map(({ object }) => `${object}.bpf.c`);
  expect([...objects, ...LOADED_BY_ITSELF].sort()).toEqual(sources.sort());
});

it('every object declares every map of the manifest, in the same shape', () => {
  const shapes = Object.values(MANIFEST.programs).map(({ object }) => {
    const opened = cleanup.owned(openObjectFile(OBJECTS, object));
    return mapNames(MANIFEST).map((name) => [name, opened.mapShape(name)]);
  });
  expect(shapes.length).toBe(programNames(MANIFEST).length);
  for (const shape of shapes) {
    expect(shape).toEqual(shapes[0]);
  }
});

it('a program whose state stands in a map names one of the manifest', () => {
  const rows = Object.values(MANIFEST.programs).flatMap((spec) => ('rowIn' in spec ? [spec.rowIn] : []));
  expect(new Set(rows)).toEqual(new Set(['endpoints']));
  expect(mapNames(MANIFEST)).toEqual(expect.arrayContaining(rows));
});

it('the name of a pin says which program its link runs, and where', () => {
  expect(parseLinkPin(MANIFEST, linkPin('egress', 12))).toEqual({
    program: 'pod_egress',
    role: 'egress',
    ifindex: 12,
  });
  expect(parseLinkPin(MANIFEST, linkPin('socket-lookup'))).toMatchObject({
    role: 'socket-lookup',
    ifindex: undefined,
  });
  for (const other of ['egress', 'egress-', 'egress-12x', 'lookup-3', 'steer', '']) {
    expect(parseLinkPin(MANIFEST, other)).toBeUndefined();
  }
});
