/**
 * The ways from a pod to a server. Each stands on a node of its own (test/lab/lab.ts) with kube-proxy's rules on it, so
 * that none pays for the rules of another; agents sleep, by SIGSTOP, while another way is measured.
 */

import { staticPod, TestAgent } from '../../e2e/agent.js';
import { runIn, script, waitFor } from '../../lab/exec.js';
import { buildLoad } from '../../lab/image.js';
import { loadKubeProxy } from '../../lab/kube-proxy/load.js';
import { RECORDED } from '../../lab/kube-proxy/placeholders.js';
import type { Lab } from '../../lab/lab.js';
import { hostLinkOf } from '../../lab/plain.js';
import type { LabRuntime } from '../../lab/pod.js';
import { type BenchClient, startClient, widenPorts } from './client.js';
import { EXPLICIT, OUTBOUND, type ProxyName, SERVER, startProxy } from './proxies.js';

export const VARIANTS = {
  explicit: 'explicit: the pod dials the proxy',
  direct: 'direct, no proxy',
  ours: 'NodeSentry',
  splice: 'NodeSentry with splice',
  'iptables-tproxy': 'iptables TPROXY',
  'nftables-tproxy': 'nftables TPROXY',
  redirect: 'REDIRECT inside the pod',
  'pods-1': 'NodeSentry, 1 pod',
  'pods-10': 'NodeSentry, 10 pods',
  'pods-100': 'NodeSentry, 100 pods',
  'pods-1000': 'NodeSentry, 1,000 pods',
  'flows-10': 'NodeSentry, 10 open flows',
  'flows-10000': 'NodeSentry, 10,000 open flows',
  'flows-100000': 'NodeSentry, 100,000 open flows',
} as const;

export type VariantName = keyof typeof VARIANTS;

/** A variant that is set up. */
export interface Standing {
  readonly name: VariantName;
  readonly lab: Lab;
  readonly client: BenchClient;
  /** What the pod dials. */
  readonly target: { readonly ip: string; readonly ports: readonly number[] };
  /** What an agent needs for what was due while it was stopped, and never is at once while it runs. */
  readonly catchUpMs: number;
  /** Before it is measured. */
  wake(): void;
  /** After that. */
  sleep(): void;
  /** What the agent last said, where there is one. */
  log(): string;
}

export interface Node {
  readonly lab: Lab;
  readonly client: BenchClient;
}

/** A server behind it, and a pod that nobody intercepts. */
export async function furnish(lab: Lab, runtime: LabRuntime): Promise<Node> {
  await loadKubeProxy(lab, 'iptables', RECORDED);
  // Connections that have ended leave before the next run begins.
  await runIn(lab.node, 'sysctl', ['-qw', 'net.netfilter.nf_conntrack_tcp_timeout_time_wait=5']);
  await widenPorts(lab.node);
  const client = await startClient(lab, runtime);
  const server = lab.daemon(lab.remote, 'server', await buildLoad(), ['serve', SERVER.ports.join(',')]);
  await server.logged(/"serving":true/);
  return { lab, client };
}

const CATCH_UP_MS = 1_500;
const awake = { catchUpMs: 0, wake: () => undefined, sleep: () => undefined, log: () => '' };

/** Both of them: nothing of the node's is in the way of either. */
export async function standPlain({ lab, client }: Node, proxy: ProxyName): Promise<Standing[]> {
  await startProxy(lab, proxy, { kind: 'explicit' });
  return [
    { name: 'explicit', lab, client, target: { ip: EXPLICIT, ports: SERVER.ports }, ...awake },
    { name: 'direct', lab, client, target: SERVER, ...awake },
  ];
}

interface OursOptions {
  readonly name: VariantName;
  /** Undefined where this build has none. */
  readonly splice?: boolean | undefined;
  /** Beside the one that the client's pod has; each has one listener, which takes both families. */
  readonly instances?: readonly object[];
  /** Beside the client. */
  readonly pods?: readonly object[];
  /** Further ones, beside the file. */
  readonly sources?: object;
  /** Once the client is intercepted. */
  readonly fill?: (agent: TestAgent) => Promise<void>;
}

export async function standOurs(
  { lab, client }: Node,
  proxy: ProxyName,
  { name, splice, instances = [], pods = [], sources = {}, fill }: OursOptions,
): Promise<Standing> {
  await startProxy(lab, proxy, { kind: 'adopted' });
  const outbound = [`${OUTBOUND.ip}:${OUTBOUND.port}`];
  const agent = new TestAgent(lab, {
    sources: { static: { file: 'pods.yaml' }, ...sources },
    // An agent that has slept takes its own sleep for a proxy that hangs.
    instances: [...instances, { name: 'default', outbound, health: { failSeconds: 3_600 } }],
    interception: splice === undefined ? {} : { splice: splice ? 'auto' : 'disabled' },
  });
  const annotations = splice === true ? { 'nodesentry.io/splice': 'enabled' } : {};
  agent.writePods([staticPod(client.pod, { annotations }), ...pods]);
  await agent.start();
  lab.cleanup.add('sleep of the agent', () => process.kill(agent.pid, 'SIGCONT'));
  await agent.adopted(1 + 2 * instances.length);
  await agent.reaches(client.pod.name, 'INTERCEPTED');
  await waitFor(`splice: ${splice === true}`, async () => {
    const workload = await agent.workload(client.pod.name);
    return workload?.interception.splice.used === (splice === true);
  });
  await fill?.(agent);
  return {
    name,
    lab,
    client,
    target: SERVER,
    catchUpMs: CATCH_UP_MS,
    wake: () => process.kill(agent.pid, 'SIGCONT'),
    sleep: () => process.kill(agent.pid, 'SIGSTOP'),
    log: () => agent.log().slice(-3_000),
  };
}

/** What is common to both TPROXYs: marked packets are delivered here (Documentation/networking/tproxy.rst of Linux). */
const DELIVER_MARKED = `ip rule add fwmark 1 lookup 100
  ip route add local 0.0.0.0/0 dev lo table 100`;

export async function standIptables({ lab, client }: Node, proxy: ProxyName): Promise<Standing[]> {
  await startProxy(lab, proxy, { kind: 'transparent' });
  const link = await hostLinkOf(lab, client.netnsName);
  await script(
    lab.node,
    `${DELIVER_MARKED}
     iptables -t mangle -N DIVERT
     iptables -t mangle -A DIVERT -j MARK --set-mark 1
     iptables -t mangle -A DIVERT -j ACCEPT
     iptables -t mangle -A PREROUTING -i ${link} -p tcp -m socket --transparent -j DIVERT
     iptables -t mangle -A PREROUTING -i ${link} -p tcp -j TPROXY --on-ip ${OUTBOUND.ip} --on-port ${OUTBOUND.port} --tproxy-mark 1`,
  );
  return [{ name: 'iptables-tproxy', lab, client, target: SERVER, ...awake }];
}

export async function standNftables({ lab, client }: Node, proxy: ProxyName): Promise<Standing[]> {
  await startProxy(lab, proxy, { kind: 'transparent' });
  const link = await hostLinkOf(lab, client.netnsName);
  await script(lab.node, DELIVER_MARKED);
  const input = `table ip bench {
    chain prerouting {
      type filter hook prerouting priority mangle
      iifname != "${link}" accept
      meta l4proto tcp socket transparent 1 meta mark set 1 accept
      meta l4proto tcp tproxy to ${OUTBOUND.ip}:${OUTBOUND.port} meta mark set 1 accept
    }
  }`;
  await runIn(lab.node, 'nft', ['-f', '-'], { input });
  return [{ name: 'nftables-tproxy', lab, client, target: SERVER, ...awake }];
}

export async function standRedirect({ lab, client }: Node, proxy: ProxyName): Promise<Standing[]> {
  await startProxy(lab, proxy, { kind: 'inside', netns: client.netnsName });
  await script(
    client.netnsName,
    `iptables -t nat -A OUTPUT -p tcp -d ${SERVER.ip} -j REDIRECT --to-ports ${OUTBOUND.port}
     sysctl -qw net.netfilter.nf_conntrack_tcp_timeout_time_wait=5`,
  );
  return [{ name: 'redirect', lab, client, target: SERVER, ...awake }];
}
