/** NodeSentry on nodes that have more to do than one pod: many enrolled pods, or many open flows. */

import { readdirSync } from 'node:fs';
import { join } from 'node:path';
import { staticPod, type TestAgent } from '../../e2e/agent.js';
import { createNetwork } from '../../lab/cni.js';
import { waitFor } from '../../lab/exec.js';
import { buildLoad } from '../../lab/image.js';
import { NamespacePods } from '../../lab/namespaces.js';
import { runPlainPod } from '../../lab/plain.js';
import { type ProxyName, SERVER } from './proxies.js';
import { type Node, type Standing, standOurs, type VariantName } from './variants.js';

type Crowd = (node: Node, proxy: ProxyName) => Promise<Standing>;

/** Those among `wanted`. */
export function crowds(wanted: readonly VariantName[]): Crowd[] {
  return wanted.flatMap((name): Crowd[] => {
    const [kind, count] = name.split('-');
    switch (kind) {
      case 'pods':
        return [(node, proxy) => standPods(node, proxy, name, Number(count))];
      case 'flows':
        return [(node, proxy) => standFlows(node, proxy, name, Number(count))];
      default:
        return [];
    }
  });
}

const AT_A_TIME = 8;

/** `count` enrolled pods, the client among them. */
function standPods(node: Node, proxy: ProxyName, name: VariantName, count: number): Promise<Standing> {
  const fill = async (agent: TestAgent) => {
    const annotations = { 'nodesentry.io/intercept': 'enabled' };
    const pods = new NamespacePods(node.lab, { socket: join(agent.runDir, 'cni.sock'), annotations });
    for (let missing = count - 1; missing > 0; missing = count - 1 - pods.live().length) {
      await Promise.all(Array.from({ length: Math.min(AT_A_TIME, missing) }, () => pods.add()));
    }
    await waitFor(
      `${count} pods to be enrolled`,
      () => agent.endpoints().length >= count || undefined,
      30_000,
    );
  };
  return standOurs(node, proxy, { name, sources: { cni: {} }, fill });
}

/** A process may have 20,000 descriptors in many places: the flows are shared out to pods, each with a proxy that keeps them. */
const FLOWS_OF_ONE = 10_000;
const FIRST_PORT = 16_001;

/** `count` open flows of other pods, which nothing is sent over. */
async function standFlows(node: Node, proxy: ProxyName, name: VariantName, count: number): Promise<Standing> {
  const { lab } = node;
  const load = await buildLoad();
  const network = createNetwork(lab, 'ptp', undefined, '-held');
  const holders = await Promise.all(
    Array.from({ length: Math.ceil(count / FLOWS_OF_ONE) }, async (_, index) => {
      const app = `held-${index}`;
      const port = FIRST_PORT + index;
      const keeper = lab.daemon(lab.node, `keeper-${index}`, load, ['serve', String(port)]);
      await keeper.logged(/"serving":true/);
      return { app, port, keeper, pod: await runPlainPod(lab, network, app) };
    }),
  );
  const fill = async (agent: TestAgent) => {
    for (const { pod, app, keeper } of holders) {
      await agent.reaches(app, 'INTERCEPTED');
      const each = String(Math.min(FLOWS_OF_ONE, count));
      const words = ['hold', SERVER.ip, SERVER.ports.join(','), each];
      await lab.daemon(pod.netnsName, `holder-${app}`, load, words).logged(/"held":/, 60_000);
      // The server would have held them as well.
      if (readdirSync(`/proc/${keeper.pid}/fd`).length < Number(each)) {
        throw new Error(`the flows of ${app} did not get to its proxy`);
      }
    }
  };
  return standOurs(node, proxy, {
    name,
    instances: holders.map(({ app, port }) => ({
      name: app,
      apps: [app],
      outbound: [`[::]:${port}`],
      health: { failSeconds: 3_600 },
    })),
    pods: holders.map(({ pod }) => staticPod(pod)),
    fill,
  });
}
