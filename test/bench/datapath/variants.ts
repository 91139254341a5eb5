/**
 * The ways from a pod to a server. Each stands on a node of its own (test/lab/lab.ts) with kube-proxy's rules on it, so
 * that none pays for the rules of another; agents sleep, by SIGSTOP, while another way is measured.
 */

import { CLI, staticPod, TestAgent } from '../../e2e/agent.js';
import { createNetwork } from '../../lab/cni.js';
import { run, runIn, script } from '../../lab/exec.js';
import { buildLoad } from '../../lab/image.js';
import { loadKubeProxy } from '../../lab/kube-proxy/load.js';
import { RECORDED } from '../../lab/kube-proxy/placeholders.js';
import { Lab } from '../../lab/lab.js';
import { hostLinkOf, type PlainPod, runPlainPod } from '../../lab/plain.js';
import { EXPLICIT, OUTBOUND, type ProxyName, SERVER, startProxy } from './proxies.js';

export const VARIANTS = {
  explicit: 'explicit: the pod dials the proxy',
  direct: 'direct, no proxy',
  ours: 'NodeSentry',
  splice: 'NodeSentry with splice',
  'iptables-tproxy': 'iptables TPROXY',
  'nftables-tproxy': 'nftables TPROXY',
  redirect: 'REDIRECT inside the pod',
} as const;

export type VariantName = keyof typeof VARIANTS;

/** A variant that is set up. */
export interface Standing {
  readonly name: VariantName;
  readonly lab: Lab;
  readonly pod: PlainPod;
  /** What the pod dials. */
  readonly target: { readonly ip: string; readonly ports: readonly number[] };
  /** Before it is measured. */
  wake(): void;
  /** After that. */
  sleep(): void;
  /** What the agent last said, where there is one. */
  log(): string;
}

interface Node {
  readonly lab: Lab;
  readonly pod: PlainPod;
}

/** A server behind it, and a pod that nobody intercepts. */
async function furnish(lab: Lab): Promise<Node> {
  await loadKubeProxy(lab, 'iptables', RECORDED);
  // Connections that have ended leave before the next run begins.
  await runIn(lab.node, 'sysctl', ['-qw', 'net.netfilter.nf_conntrack_tcp_timeout_time_wait=5']);
  const pod = await runPlainPod(lab, createNetwork(lab, 'ptp'), 'client');
  await runIn(pod.netnsName, 'ip', ['link', 'set', 'lo', 'up']);
  for (const netns of [lab.node, pod.netnsName]) {
    await runIn(netns, 'sysctl', ['-qw', 'net.ipv4.ip_local_port_range=16384 65535']);
  }
  const server = lab.daemon(lab.remote, 'server', await buildLoad(), ['serve', SERVER.ports.join(',')]);
  await server.logged(/"serving":true/);
  return { lab, pod };
}

const awake = { wake: () => undefined, sleep: () => undefined, log: () => '' };

/** Both of them: nothing of the node's is in the way of either. */
async function standPlain({ lab, pod }: Node, proxy: ProxyName): Promise<Standing[]> {
  await startProxy(lab, proxy, { kind: 'explicit' });
  return [
    { name: 'explicit', lab, pod, target: { ip: EXPLICIT, ports: SERVER.ports }, ...awake },
    { name: 'direct', lab, pod, target: SERVER, ...awake },
  ];
}

async function standOurs(
  { lab, pod }: Node,
  proxy: ProxyName,
  splice: boolean | undefined,
): Promise<Standing[]> {
  await startProxy(lab, proxy, { kind: 'adopted' });
  const outbound = [`${OUTBOUND.ip}:${OUTBOUND.port}`];
  const agent = new TestAgent(lab, {
    sources: { static: { file: 'pods.yaml' } },
    // An agent that has slept takes its own sleep for a proxy that hangs.
    instances: [{ name: 'default', outbound, health: { failSeconds: 3_600 } }],
    interception: splice === undefined ? {} : { splice: splice ? 'auto' : 'disabled' },
  });
  const annotations = splice === true ? { 'nodesentry.io/splice': 'enabled' } : {};
  agent.writePods([staticPod(pod, { annotations })]);
  await agent.start();
  lab.cleanup.add('sleep of the agent', () => process.kill(agent.pid, 'SIGCONT'));
  await agent.adopted(1);
  await agent.reaches(pod.name, 'INTERCEPTED');
  return [
    {
      name: splice === true ? 'splice' : 'ours',
      lab,
      pod,
      target: SERVER,
      wake: () => process.kill(agent.pid, 'SIGCONT'),
      sleep: () => process.kill(agent.pid, 'SIGSTOP'),
      log: () => agent.log().slice(-3_000),
    },
  ];
}

/** What is common to both TPROXYs: marked packets are delivered here (Documentation/networking/tproxy.rst of Linux). */
const DELIVER_MARKED = `ip rule add fwmark 1 lookup 100
  ip route add local 0.0.0.0/0 dev lo table 100`;

async function standIptables({ lab, pod }: Node, proxy: ProxyName): Promise<Standing[]> {
  await startProxy(lab, proxy, { kind: 'transparent' });
  const link = await hostLinkOf(lab, pod.netnsName);
  await script(
    lab.node,
    `${DELIVER_MARKED}
     iptables -t mangle -N DIVERT
     iptables -t mangle -A DIVERT -j MARK --set-mark 1
     iptables -t mangle -A DIVERT -j ACCEPT
     iptables -t mangle -A PREROUTING -i ${link} -p tcp -m socket --transparent -j DIVERT
     iptables -t mangle -A PREROUTING -i ${link} -p tcp -j TPROXY --on-ip ${OUTBOUND.ip} --on-port ${OUTBOUND.port} --tproxy-mark 1`,
  );
  return [{ name: 'iptables-tproxy', lab, pod, target: SERVER, ...awake }];
}

async function standNftables({ lab, pod }: Node, proxy: ProxyName): Promise<Standing[]> {
  await startProxy(lab, proxy, { kind: 'transparent' });
  const link = await hostLinkOf(lab, pod.netnsName);
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
  return [{ name: 'nftables-tproxy', lab, pod, target: SERVER, ...awake }];
}

async function standRedirect({ lab, pod }: Node, proxy: ProxyName): Promise<Standing[]> {
  await startProxy(lab, proxy, { kind: 'inside', netns: pod.netnsName });
  await script(
    pod.netnsName,
    `iptables -t nat -A OUTPUT -p tcp -d ${SERVER.ip} -j REDIRECT --to-ports ${OUTBOUND.port}
     sysctl -qw net.netfilter.nf_conntrack_tcp_timeout_time_wait=5`,
  );
  return [{ name: 'redirect', lab, pod, target: SERVER, ...awake }];
}

/** Whether this build knows of splice at all. */
export async function knowsSplice(): Promise<boolean> {
  return /\bsplice\b/.test(await run(CLI, ['config', 'schema']));
}

/**
 * All that are wanted, in the order of `VARIANTS`, which is the one they take turns in; `splice` is left out where this
 * build has none. What stands is taken back by `close`, also after a failure half way.
 */
export class Stand {
  readonly #labs: Lab[] = [];
  readonly #standing: Standing[] = [];

  get variants(): readonly Standing[] {
    return this.#standing;
  }

  async build(proxy: ProxyName, wanted: readonly VariantName[]): Promise<void> {
    const splice = await knowsSplice();
    const steps: readonly [readonly VariantName[], (node: Node) => Promise<Standing[]>][] = [
      [['explicit', 'direct'], (node) => standPlain(node, proxy)],
      [['ours'], (node) => standOurs(node, proxy, splice ? false : undefined)],
      [splice ? ['splice'] : [], (node) => standOurs(node, proxy, true)],
      [['iptables-tproxy'], (node) => standIptables(node, proxy)],
      [['nftables-tproxy'], (node) => standNftables(node, proxy)],
      [['redirect'], (node) => standRedirect(node, proxy)],
    ];
    for (const [names, step] of steps) {
      if (names.some((name) => wanted.includes(name))) {
        const lab = await Lab.create();
        this.#labs.push(lab);
        const standing = await step(await furnish(lab));
        for (const variant of standing) {
          variant.sleep();
        }
        this.#standing.push(...standing.filter(({ name }) => wanted.includes(name)));
      }
    }
  }

  async close(): Promise<void> {
    for (const lab of this.#labs) {
      await lab.close();
    }
  }
}
