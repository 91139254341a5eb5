/**
 * ICMP errors about intercepted flows reach whom they concern: here those of a pod that forwards for others (a container in
 * it), behind a link that carries less than the proxy's packets. Those of the far side: test/e2e/inbound-traffic.test.ts.
 */

import { describe, expect, it } from 'vitest';
import { inNetns, run, runIn, script, tryRun } from '../lab/exec.js';
import { buildApp } from '../lab/image.js';
import { REMOTE } from '../lab/lab.js';
import { patient } from '../lab/patience.js';
import type { PlainPod } from '../lab/plain.js';
import { reply } from '../lab/pod.js';
import { useScene } from './scene.js';

const FAMILIES = [4, 6] as const;
const PODS = ['routed', 'bridged'] as const;
const BYTES = 4 * 1024 * 1024;

const scene = useScene({ pods: [{ name: 'routed' }, { name: 'bridged', topology: 'bridge' }] });

/** Inside the pod, which translates its addresses: to it the pod's end of their link carries 1,300 bytes. */
async function container(name: string): Promise<string> {
  const { lab } = scene;
  const inner = `nsl-${lab.id}-in-${name}`;
  await run('ip', ['netns', 'add', inner]);
  lab.cleanup.add(`netns ${inner}`, () => run('ip', ['netns', 'del', inner]));
  await script(
    (scene.pod(name) as PlainPod).netnsName,
    `sysctl -qw net.ipv4.ip_forward=1 net.ipv6.conf.all.forwarding=1
     ip link add inner0 mtu 1300 type veth peer name eth0 mtu 1500 netns ${inner}
     ip addr add 10.77.0.1/24 dev inner0
     ip addr add fd00:77::1/64 dev inner0 nodad
     ip link set inner0 up`,
  );
  const input =
    'table inet inner { chain out { type nat hook postrouting priority 100; oifname "eth0" masquerade; }; }';
  await runIn((scene.pod(name) as PlainPod).netnsName, 'nft', ['-f', '-'], { input });
  await script(
    inner,
    `ip link set lo up
     ip addr add 10.77.0.2/24 dev eth0
     ip addr add fd00:77::2/64 dev eth0 nodad
     ip link set eth0 up
     ip route add default via 10.77.0.1
     ip -6 route add default via fd00:77::1`,
  );
  return inner;
}

describe.each(PODS)('a container in a %s pod', (name) => {
  let inner: string | undefined;

  it.each(FAMILIES)('IPv%i: gets what does not fit into its link at once', async (family) => {
    inner ??= await container(name);
    const words = ['fetch', REMOTE[family], '80', String(BYTES)];
    const output = await tryRun(...inNetns(inner, await buildApp(), words), { timeoutMs: patient(30_000) });
    const fetched = reply(output);
    expect(fetched).toMatchObject({ ok: true, bytes: BYTES });
    // By way of the proxy.
    const { ips } = scene.pod(name);
    const flows = scene.proxy.flows().filter(({ peer }) => peer.includes(ips[family]));
    expect(flows.length).toBeGreaterThan(0);
  });
});
