/**
 * What holds the agent's event loop, on a node of many pods with a full flow table: for how long at most, while each
 * kind of request is made again and again, and while nothing is asked.
 *
 *   make bench-loop [PODS=1000]
 */

import { join } from 'node:path';
import { setTimeout as delay } from 'node:timers/promises';
import { readLayouts } from '../../src/datapath/layouts.js';
import { openObjectFile } from '../../src/kernel/pins.js';
import { BpfMap } from '../../src/native/bpf.js';
import { ipToBytes } from '../../src/net/ip.js';
import { TestAgent } from '../e2e/agent.js';
import { run } from '../lab/exec.js';
import { Lab } from '../lab/lab.js';
import { NamespacePods } from '../lab/namespaces.js';

const PODS = Number(process.env.PODS ?? 1_000);
const SECONDS = Number(process.env.SECONDS ?? 6);
const OBJECTS = join(import.meta.dirname, '../../build/bpf');

function fillFlows(bpffs: string): number {
  const object = openObjectFile(OBJECTS, 'intercept');
  object.load();
  const { flowKey, flow } = readLayouts(object);
  const flows = BpfMap.openPinned(join(bpffs, 'v1/maps/flows'));
  const keys: Buffer[] = [];
  const values: Buffer[] = [];
  for (let n = 0; n < flows.maxEntries; n++) {
    const [sport, dport] = [n % 50_000, Math.floor(n / 50_000) + 1];
    const tuple = { src: ipToBytes('10.66.0.1'), dst: ipToBytes('10.200.1.1'), sport, dport, protocol: 6 };
    keys.push(flowKey.encode(tuple));
    values.push(flow.encode({ started_ns: n, endpoint: 1, generation: 1 }));
  }
  const { added } = flows.addMany(Buffer.concat(keys), Buffer.concat(values));
  flows.close();
  object.close();
  return added;
}

const lab = await Lab.create();
try {
  const agent = new TestAgent(lab, { sources: { cni: {} }, interception: { enrol: 'all' } });
  await agent.start();
  const pods = new NamespacePods(lab, { socket: join(agent.runDir, 'cni.sock') });
  while (pods.live().length < PODS) {
    await Promise.all(Array.from({ length: Math.min(8, PODS - pods.live().length) }, () => pods.add()));
  }
  // A listener that may not be adopted, for it is nobody's.
  const stranger = ['TCP-LISTEN:15001,bind=127.0.0.1,fork,reuseaddr,su=nobody', 'SYSTEM:true'];
  lab.daemon(lab.node, 'stranger', 'socat', stranger);
  const flows = fillFlows(agent.bpffs);
  console.log(`${pods.live().length} pods, ${flows} flows`);
  const get = (path: string) =>
    run('curl', [
      '-sS',
      '-H',
      'nodesentry.io: true',
      '--unix-socket',
      join(agent.runDir, 'http.sock'),
      `http://localhost${path}`,
    ]);
  const held = async (): Promise<string> => {
    const text = await get('/metrics');
    return [...text.matchAll(/^nodesentry_event_loop_delay_seconds\{quantile="(.*)"\} (.*)$/gm)]
      .map(([, quantile, seconds]) => `${quantile}: ${(Number(seconds) * 1e3).toFixed(1)}`)
      .join('  ');
  };
  const cases: Record<string, string | undefined> = {
    nothing: undefined,
    flows: '/v1/flows?limit=1000',
    status: '/v1/status',
    workloads: '/v1/workloads',
    metrics: '/metrics',
    resolve: '/v1/resolve?proto=tcp&src=10.66.0.1:10&dst=10.200.1.1:1',
  };
  for (const [name, path] of Object.entries(cases)) {
    await held();
    const until = Date.now() + SECONDS * 1_000;
    let worst = '';
    while (Date.now() < until) {
      if (path === undefined) {
        await delay(SECONDS * 1_000);
      } else if (path === '/metrics') {
        await delay(300);
        const now = await held();
        worst = now > worst ? now : worst;
      } else {
        await get(path);
      }
    }
    console.log(`${name}: held for (ms, by quantile) ${path === '/metrics' ? worst : await held()}`);
  }
} finally {
  await lab.close();
}
