/** The judge of so many tests: whoever reads "nothing was captured" must know that it would have been. */

import { afterAll, beforeAll, expect, it } from 'vitest';
import { Capture } from './capture.js';
import { runIn, waitFor } from './exec.js';
import { Lab, REMOTE } from './lab.js';

let lab: Lab;

beforeAll(async () => {
  lab = await Lab.create();
});

afterAll(() => lab?.close());

async function datagram(family: 4 | 6): Promise<void> {
  const words = ['-c', `echo hello >/dev/udp/${REMOTE[family]}/7`];
  await runIn(lab.node, 'bash', words);
}

it('sees what leaves, in both families, and says from where to where', async () => {
  const capture = await Capture.start(lab, lab.node, 'uplink', 'udp and dst port 7');
  await datagram(4);
  await datagram(6);
  // The neighbour has to be found first.
  const flows = await waitFor('both', async () => {
    const all = await capture.flows();
    return all.length > 1 ? all : undefined;
  });
  expect(flows).toEqual([
    expect.stringMatching(/^10\.199\.0\.1:\d+ > 10\.200\.1\.1:7$/),
    expect.stringMatching(/^\[fd00:199::1\]:\d+ > \[fd00:200::1\]:7$/),
  ]);
});

it('that was ended by somebody is not taken for one that saw nothing', async () => {
  const capture = await Capture.start(lab, lab.node, 'uplink', 'udp and dst port 7');
  expect(await capture.all()).toEqual([]);
  await capture.stop();
  await expect(capture.all()).rejects.toThrow('the capture has ended');
});

it('of another interface is not taken for one that saw nothing', async () => {
  const capture = await Capture.start(lab, lab.node, 'lo', 'udp and dst port 7');
  await expect(capture.all()).rejects.toThrow('waited');
}, 30_000);
