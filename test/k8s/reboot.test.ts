/** A node that loses power: every process ends, the kernel forgets, files stay; what comes first when it is back is chance. */

import { afterAll, beforeAll, expect, test } from 'vitest';
import type { Part } from '../cluster/cluster.js';
import type { Capture } from '../lab/capture.js';
import { waitFor } from '../lab/exec.js';
import { REMOTE } from '../lab/lab.js';
import { patient } from '../lab/patience.js';
import { ENROLLED, Installation, SYSTEM } from './installation.js';

const ORDERS: readonly (readonly Part[])[] = [
  ['containerd', 'kubelet', 'kube-proxy'],
  ['kube-proxy', 'containerd', 'kubelet'],
  ['containerd', 'kube-proxy', 'kubelet'],
];
const RUNTIMES = [
  ['steady-runc', {}],
  ['steady-gvisor', { runtimeClassName: 'gvisor' }],
] as const;

let site: Installation;
let uplink: Capture;

/** It dials without a pause, from its first moment on. */
const RESTLESS = ['/bin/sh', '-c', `while :; do /bin/app dial ${REMOTE[4]} 80; done`];

beforeAll(async () => {
  site = await Installation.prepare();
  await site.install();
  for (const [name, runtime] of RUNTIMES) {
    await site.deploy(name, { labels: ENROLLED, command: RESTLESS, ...runtime });
  }
}, patient(300_000));

afterAll(async () => {
  await site?.close();
});

test.each(ORDERS.map((order) => [order.join(', '), order] as const))(
  'started again as %s: every pod is intercepted as before, and none got past the proxy meanwhile',
  async (_, order) => {
    const { cluster } = site;
    const startsOf = async (name: string) => (await site.restartsOf(name))[0] ?? 0;
    const before = new Map(
      await Promise.all(RUNTIMES.map(async ([name]) => [name, await startsOf(name)] as const)),
    );
    await cluster.powerOff();
    uplink = await site.escapes();
    await cluster.powerOn(order);
    for (const [name] of RUNTIMES) {
      await waitFor(
        `${name} to run again`,
        async () => (await startsOf(name).catch(() => 0)) > (before.get(name) ?? 0),
        120_000,
        500,
      );
    }
    await site.rolledOut('daemonset/nodesentry', SYSTEM);
    await site.rolledOut('daemonset/proxy', SYSTEM);
    for (const [name] of RUNTIMES) {
      await site.reaches(name, 'INTERCEPTED', 1);
      expect(await site.dial(name, REMOTE[4])).toMatchObject({ ok: true });
    }
    expect(await uplink.flows()).toEqual([]);
    await uplink.stop();
  },
  patient(240_000),
);
