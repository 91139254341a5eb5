/** Each app reaches its own proxy, whatever becomes of the list of instances. */

import { afterAll, beforeAll, expect, it } from 'vitest';
import { createNetwork } from '../lab/cni.js';
import { type Daemon, runIn, waitFor } from '../lab/exec.js';
import { Lab, REMOTE } from '../lab/lab.js';
import { type PlainPod, runPlainPod } from '../lab/plain.js';
import { staticPod, TestAgent } from './agent.js';

const PORT = { default: 15001, payments: 16001, main: 17001 } as const;
type Name = keyof typeof PORT;

let lab: Lab;
let agent: TestAgent;
let web: PlainPod;
const proxies = new Map<Name, Daemon>();

/** A proxy that tells its name to whoever comes. */
function startProxy(name: Name): void {
  const listen = `TCP-LISTEN:${PORT[name]},bind=127.0.0.1,fork,reuseaddr`;
  proxies.set(name, lab.daemon(lab.node, `proxy-${name}`, 'socat', [listen, `SYSTEM:echo ${name}`]));
}

/** Whose proxy a new connection of the pod comes to; empty where it is reset. */
async function reached(): Promise<string> {
  const words = ['-c', `socat -u -T2 TCP:${REMOTE[4]}:80,connect-timeout=5 - 2>/dev/null || true`];
  return (await runIn(web.netnsName, 'sh', words)).trim();
}

/** From here on no source names a pod: the CRI's socket is not there. */
const UNHEARD = { cri: { endpoint: 'unix:///run/nobody-listens-here.sock' } };
const instance = (name: Name, port: number = PORT[name], apps?: string[]) => ({
  name,
  outbound: `127.0.0.1:${port}`,
  ...(apps === undefined ? {} : { apps }),
});

beforeAll(async () => {
  lab = await Lab.create();
  await lab.serve();
  web = await runPlainPod(lab, createNetwork(lab, 'ptp'), 'web');
  agent = new TestAgent(lab, { sources: { static: { file: 'pods.yaml' } } });
  agent.writePods([staticPod(web)]);
  for (const name of ['default', 'payments', 'main'] as const) {
    startProxy(name);
  }
  agent.writeConfig({ instances: [instance('default')] });
  await agent.start();
  await agent.reaches('web', 'INTERCEPTED');
});

afterAll(async () => {
  await lab?.close();
});

it('an instance put in front of the others takes nobody over, though no source says whose the pods are', async () => {
  expect(await reached()).toBe('default');
  await agent.stop();
  agent.writeConfig({
    sources: UNHEARD,
    instances: [instance('payments', PORT.payments, ['payments']), instance('default')],
  });
  await agent.start({ ready: false });
  await waitFor(
    'both listeners to be adopted',
    async () => (await agent.client.status()).listeners.filter(({ adopted }) => adopted).length === 2,
  );
  expect(await reached()).toBe('default');
});

it('an instance that is not configured any more keeps its pods until a source says whose they are now', async () => {
  await agent.stop();
  agent.writeConfig({ sources: UNHEARD, instances: [instance('main')] });
  await agent.start({ ready: false });
  await agent.adopted(1);
  expect(await reached()).toBe('default');

  await agent.stop();
  agent.writeConfig({ instances: [instance('main')] });
  await agent.start();
  await agent.reaches('web', 'INTERCEPTED');
  expect(await reached()).toBe('main');
});

it('flows are listed under the name of the instance that they went to', async () => {
  const flows = await agent.client.flows(10);
  expect(flows.map((flow) => flow.instance)).toEqual(['main', 'default', 'default', 'default']);
});
