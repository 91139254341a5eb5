/** Life-cycle hooks by the real kubelet, as examples/lifecycle has them, of a service under load. */

import { readFileSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { afterAll, beforeAll, describe, expect, onTestFinished, test } from 'vitest';
import type { Capture } from '../lab/capture.js';
import { waitFor } from '../lab/exec.js';
import { Load } from '../lab/load.js';
import { patient } from '../lab/patience.js';
import { ENROLLED, Installation, ROOT } from './installation.js';

const NODE = '10.199.0.1';
const EXAMPLES = [
  ['kubelet', 30_090],
  ['pod', 30_091],
] as const;
const EVERY_MS = 10;

let site: Installation;
let uplink: Capture;

beforeAll(async () => {
  site = await Installation.prepare({ proxyMode: 'nftables' });
  await site.install();
  await site.deploy('steady', { labels: ENROLLED });
  uplink = await site.escapes();
}, patient(300_000));

afterAll(async () => {
  await site?.close();
});

describe.each(EXAMPLES)('a deployment whose hooks the %s asks', (name, nodePort) => {
  const app = `hooked-${name}`;
  const isRunning = async (uid: unknown) =>
    (await site.podsOf(app)).some(({ metadata }) => metadata.uid === uid);

  test('starts, intercepted, and with its proxy there', async () => {
    // Its app does not end at SIGTERM: what the kubelet waits for after the hook is shortened.
    const path = join(site.lab.directory, `${name}.yaml`);
    const text = readFileSync(join(ROOT, `examples/lifecycle/${name}.yaml`), 'utf8');
    writeFileSync(
      path,
      text.replace('terminationGracePeriodSeconds: 40', 'terminationGracePeriodSeconds: 12'),
    );
    await site.cluster.kubectl(['apply', '-f', path]);
    await site.rolledOut(`deployment/${app}`);
    await site.reaches(app, 'INTERCEPTED', 2);
    expect(await site.restartsOf(app)).toEqual([0, 0]);
    const events = await site.cluster.kubectl(['get', 'events', '-o', 'jsonpath={.items[*].reason}']);
    expect(events).not.toContain('FailedPostStartHook');
    expect(await uplink.flows()).toEqual([]);
  });

  test('loses no request of a service under load while its pods end, one after the other', async () => {
    await site.cluster.apply({
      apiVersion: 'v1',
      kind: 'Service',
      metadata: { name: app },
      spec: { type: 'NodePort', selector: { app }, ports: [{ port: 80, nodePort }] },
    });
    const pod = await site.networkOf('steady');
    const load = {
      pod,
      family: 4,
      everyMs: EVERY_MS,
      inbound: true,
      at: { ip: NODE, port: nodePort },
    } as const;
    await waitFor(
      'the service to answer',
      async () => (await site.dialFromOutside(NODE, String(nodePort))).ok,
      20_000,
    );
    const flowing = await Load.start(site.lab, [
      { ...load, kind: 'connects' },
      { ...load, kind: 'handshakes' },
    ]);
    onTestFinished(() => flowing.end());
    for (const { metadata } of await site.podsOf(app)) {
      await site.cluster.kubectl(['delete', 'pod', String(metadata.name), '--wait=false']);
      await waitFor('it to be gone', async () => !(await isRunning(metadata.uid)), 60_000, 200);
      await site.rolledOut(`deployment/${app}`);
    }
    const told = await flowing.stop();
    expect(told.filter(({ failures }) => failures > 0)).toEqual([]);
    expect(told.every(({ done }) => done > 100)).toBe(true);
    const events = await site.cluster.kubectl(['get', 'events', '-o', 'jsonpath={.items[*].reason}']);
    expect(events).not.toContain('FailedPreStopHook');
  });
});
