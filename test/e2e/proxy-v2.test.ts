/** The reference proxy tells by the PROXY protocol who has opened a connection; HAProxy and Envoy before the server understand it. */

import { join } from 'node:path';
import { beforeAll, describe, expect, it } from 'vitest';
import { type Daemon, waitFor } from '../lab/exec.js';
import { REMOTE } from '../lab/lab.js';
import { reply } from '../lab/pod.js';
import { spiffeId } from './http-app.js';
import { useScene } from './scene.js';

const EXAMPLES = join(import.meta.dirname, '../../examples/proxy-v2');
const ENVOY = join(import.meta.dirname, '../../.cache/bin/envoy');
const FAMILIES = [4, 6] as const;

let haproxy: Daemon;
let envoy: Daemon;
const scene = useScene({
  pods: [{ name: 'web' }],
  proxy: ['--send-proxy-v2'],
  prepare: async ({ lab }) => {
    haproxy = lab.daemon(lab.remote, 'haproxy', 'haproxy', ['-f', join(EXAMPLES, 'haproxy.cfg')]);
    envoy = lab.daemon(lab.remote, 'envoy', ENVOY, [
      ...['-c', join(EXAMPLES, 'envoy.yaml'), '--concurrency', '2', '--disable-hot-restart'],
      ...['--file-flush-interval-msec', '50'],
    ]);
    await envoy.logged(/starting main dispatch loop/);
  },
});

const at = (ip: string, port: unknown) => (ip.includes(':') ? `[${ip}]:${port}` : `${ip}:${port}`);

async function dials(port: number, family: 4 | 6): Promise<string> {
  const web = scene.pod('web');
  const dialled = reply(await web.app(['dial', REMOTE[family], String(port)]));
  expect(dialled).toMatchObject({ ok: true });
  return `peer=${at(web.ips[family], dialled.localPort)} dialled=${at(REMOTE[family], port)}`;
}

it.each(FAMILIES)('Envoy over IPv%i', async (family) => {
  const ends = await dials(8_082, family);
  const line = `spiffe=${spiffeId('web')} pod=default/web ${ends}`;
  await waitFor(`"${line}" in Envoy's log`, () => envoy.log().split('\n').includes(line));
});

describe('with the SPIFFE ID as unique id, which HAProxy understands before 2.9', () => {
  beforeAll(async () => {
    await scene.proxy.stop();
    await scene.agent.adopted(0);
    await scene.proxy.start('--send-proxy-v2', '--proxy-v2-id', '0x05');
    await scene.agent.adopted(2);
  });

  it.each(FAMILIES)('HAProxy over IPv%i', async (family) => {
    const ends = await dials(8_081, family);
    // HAProxy writes IPv6 addresses without brackets.
    const line = `spiffe=${spiffeId('web')} ${ends}`.replaceAll(/[[\]]/g, '');
    await waitFor(`"${line}" in HAProxy's log`, () => haproxy.log().split('\n').includes(line));
  });
});
