/**
 * A bridge forgets a station that it has not heard for its ageing time, and floods what is sent to it to every port. It hears
 * nothing of what is intercepted: does it know the pod all the same?
 */

import { randomUUID } from 'node:crypto';
import { basename } from 'node:path';
import { setTimeout as delay } from 'node:timers/promises';
import { expect, it } from 'vitest';
import { Capture } from '../lab/capture.js';
import { runIn, script } from '../lab/exec.js';
import { Load } from '../lab/load.js';
import { patient } from '../lab/patience.js';
import type { LabPod } from '../lab/pod.js';
import { useScene } from './scene.js';

const AGEING_MS = patient(3_000);
const WEB = 'web';
const OTHER = 'other';

const scene = useScene({
  pods: [
    { name: WEB, topology: 'bridge' },
    { name: OTHER, topology: 'bridge', described: { labels: { app: OTHER } } },
  ],
});

/** Without an ageing neighbour entry on either side nobody asks for the pod's address, and nothing else of it is heard. */
async function keepNeighbours(pod: LabPod, bridge: string): Promise<void> {
  const netns = basename(pod.netns);
  const macOf = async (where: string, link: string) => {
    const [found] = JSON.parse(await runIn(where, 'ip', ['-j', 'link', 'show', link])) as {
      address: string;
    }[];
    return found?.address ?? '';
  };
  const [own, gateway] = [await macOf(netns, 'eth0'), await macOf(scene.lab.node, bridge)];
  for (const family of [4, 6] as const) {
    await script(
      scene.lab.node,
      `ip neigh replace ${pod.ips[family]} lladdr ${own} dev ${bridge} nud permanent`,
    );
    const [route] = JSON.parse(
      await runIn(netns, 'ip', ['-j', `-${family}`, 'route', 'show', 'default']),
    ) as {
      gateway: string;
    }[];
    await script(netns, `ip neigh replace ${route?.gateway} lladdr ${gateway} dev eth0 nud permanent`);
  }
}

/** What is sent to the pod `to`, seen by the pod `by`. */
async function flooded(capture: Capture, by: LabPod): Promise<Buffer[]> {
  const marker = Buffer.from(`marker ${randomUUID()}`);
  await runIn(scene.lab.node, 'bash', ['-c', `printf '%s' '${marker}' >/dev/udp/${by.ips[4]}/9`]);
  await capture.sees(marker);
  return capture.frames().filter((frame) => !frame.includes('marker'));
}

it('knows the pod as long as it is intercepted: no answer to it is flooded', async () => {
  const [web, other] = [scene.pod(WEB), scene.pod(OTHER)];
  const { bridge } = scene.network('bridge');
  // While the agent runs, and the next renewal by the time that the bridge had is half a minute away.
  await script(scene.lab.node, `ip link set ${bridge} type bridge ageing_time ${AGEING_MS / 10}`);
  await keepNeighbours(web, bridge);
  const capture = await Capture.start(
    scene.lab,
    basename(other.netns),
    'eth0',
    `tcp and (dst host ${web.ips[4]} or dst host ${web.ips[6]})`,
  );
  const load = await Load.start(scene.lab, [
    { pod: web, kind: 'keepalive', family: 4, everyMs: 50 },
    { pod: web, kind: 'keepalive', family: 6, everyMs: 50 },
  ]);
  await delay(4 * AGEING_MS); // of the bridge: nothing tells of its end
  for (const { done, failures } of await load.stop()) {
    expect(failures).toBe(0);
    expect(done).toBeGreaterThan(20);
  }
  expect(await flooded(capture, other)).toEqual([]);
  await scene.expectNothingDirect();
});
