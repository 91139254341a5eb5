/** The agent in a real cluster, installed as docs/install.md says, with the reference proxy and what tests start beside it. */

import { existsSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import type { WorkloadMessage } from '../../src/api/messages.js';
import { Cluster, type ClusterOptions } from '../cluster/cluster.js';
import { Capture, POD_DIALS } from '../lab/capture.js';
import { inNetns, type Output, run, tryRun, waitFor } from '../lab/exec.js';
import { buildApp, IMAGE } from '../lab/image.js';
import { Lab, REMOTE } from '../lab/lab.js';
import { type LabPod, reply } from '../lab/pod.js';
import type { KubeObject } from './control-plane.js';

export const ROOT = join(import.meta.dirname, '../..');
export const SYSTEM = 'nodesentry-system';
const ARCHIVE = join(ROOT, 'build/nodesentry-image.tar');
const START_MS = 90_000;

export interface DeploymentSpec {
  readonly namespace?: string;
  readonly replicas?: number;
  readonly runtimeClassName?: string;
  readonly labels?: Readonly<Record<string, string>>;
  /** Of the test application, or a line for a shell. Default: it serves at port 80. */
  readonly command?: readonly string[];
  readonly container?: object;
  readonly pod?: object;
}

export const ENROLLED = { 'nodesentry.io/intercept': 'enabled' } as const;
/** Dials at once; only where that succeeds does it live on. */
export const DIALS_FIRST = ['/bin/sh', '-c', `/bin/app dial ${REMOTE[4]} 80 && exec /bin/app pause`];

export class Installation {
  readonly lab: Lab;
  readonly cluster: Cluster;

  private constructor(lab: Lab, cluster: Cluster) {
    this.lab = lab;
    this.cluster = cluster;
  }

  /** A cluster with nothing of ours in it but the images. */
  static async prepare(options: ClusterOptions = {}): Promise<Installation> {
    const lab = await Lab.create();
    try {
      await lab.serve();
      const cluster = await Cluster.start(lab, options);
      await cluster.load(ARCHIVE);
      return new Installation(lab, cluster);
    } catch (error) {
      await lab.close().catch(() => undefined);
      throw error;
    }
  }

  async install(): Promise<void> {
    await this.cluster.kubectl(['apply', '-k', join(ROOT, 'examples/cluster')]);
    await this.rolledOut('daemonset/nodesentry', SYSTEM);
    await this.rolledOut('daemonset/proxy', SYSTEM);
    await this.rolledOut('deployment/web', 'shop');
    await this.rolledOut('deployment/client', 'shop');
  }

  close(): Promise<void> {
    return this.lab.close();
  }

  async rolledOut(what: string, namespace = 'default', timeoutMs = START_MS): Promise<void> {
    const words = ['-n', namespace, 'rollout', 'status', what, `--timeout=${timeoutMs}ms`];
    const { code, stdout, stderr } = await this.cluster.tryKubectl(words, { timeoutMs: timeoutMs + 5_000 });
    if (code !== 0) {
      const pods = await this.cluster.kubectl(['-n', namespace, 'describe', 'pods']);
      throw new Error(`${what} is not rolled out: ${stdout}${stderr}\n${pods.slice(-6_000)}`);
    }
  }

  /** `nodesentry` in the agent's container. */
  nodesentry(...words: readonly string[]): Promise<string> {
    return this.cluster.kubectl(['-n', SYSTEM, 'exec', 'daemonset/nodesentry', '--', 'nodesentry', ...words]);
  }

  async workloads(): Promise<readonly WorkloadMessage[]> {
    return (JSON.parse(await this.nodesentry('pods', '--json')) as { workloads: WorkloadMessage[] })
      .workloads;
  }

  /** Those of an app, once each of them has come so far. */
  async reaches(app: string, state: string, count?: number): Promise<readonly WorkloadMessage[]> {
    let seen = '';
    const are = async () => {
      const all = await this.workloads().catch((error: Error) => {
        seen = error.message;
        return [];
      });
      const found = all.filter((workload) => workload.app === app);
      const states = found.map(
        ({ podName, interception }) => `${podName} ${interception.state} ${interception.reason}`,
      );
      seen = all.length === 0 ? seen : `${states.join(', ')} of ${all.length}`;
      const isWhole = found.length > 0 && (count === undefined || found.length === count);
      return isWhole && found.every(({ interception }) => interception.state === state) ? found : undefined;
    };
    try {
      return await waitFor(`${app} to be ${state}`, are, 30_000, 200);
    } catch (error) {
      throw new Error(`${(error as Error).message}: ${seen}`);
    }
  }

  deployment(name: string, spec: DeploymentSpec = {}): KubeObject {
    const { namespace = 'default', replicas = 1, runtimeClassName, labels, command, container, pod } = spec;
    return {
      apiVersion: 'apps/v1',
      kind: 'Deployment',
      metadata: { name, namespace },
      spec: {
        replicas,
        selector: { matchLabels: { app: name } },
        template: {
          metadata: { labels: { app: name, ...labels } },
          spec: {
            ...(runtimeClassName === undefined ? {} : { runtimeClassName }),
            terminationGracePeriodSeconds: 1,
            containers: [
              { name: 'app', image: IMAGE, command: command ?? ['/bin/app', 'serve', '80'], ...container },
            ],
            ...pod,
          },
        },
      },
    };
  }

  async deploy(name: string, spec: DeploymentSpec = {}): Promise<void> {
    await this.cluster.apply(this.deployment(name, spec));
    await this.rolledOut(`deployment/${name}`, spec.namespace);
  }

  async podsOf(app: string, namespace = 'default'): Promise<readonly KubeObject[]> {
    const found = (await this.cluster.get('pods', '-n', namespace, '-l', `app=${app}`)) as unknown as {
      items: readonly KubeObject[];
    };
    return found.items;
  }

  /** Of their first containers. */
  async restartsOf(app: string): Promise<readonly number[]> {
    const statuses = (await this.podsOf(app)).map(
      ({ status }) => status as { containerStatuses?: readonly { restartCount: number }[] },
    );
    return statuses.map(({ containerStatuses }) => containerStatuses?.[0]?.restartCount ?? 0);
  }

  /** `/bin/app` in a pod of the app. */
  app(app: string, words: readonly string[], namespace = 'default'): Promise<Output> {
    return this.cluster.tryKubectl([
      '-n',
      namespace,
      'exec',
      `deployment/${app}`,
      '--',
      '/bin/app',
      ...words,
    ]);
  }

  async dial(app: string, ip: string, port = '80', namespace?: string) {
    return reply(await this.app(app, ['dial', ip, port], namespace));
  }

  /** From the world outside the node. */
  async dialFromOutside(ip: string, port: string) {
    return reply(await tryRun(...inNetns(this.lab.remote, await buildApp(), ['dial', ip, port])));
  }

  /** What of TCP that pods open leaves the node: nothing, while all are enrolled. */
  escapes(): Promise<Capture> {
    return Capture.start(this.lab, this.lab.node, 'uplink', POD_DIALS);
  }

  /** Whatever runs there is seen from outside by the network namespace alone: for a load that outlives all restarts. */
  async networkOf(app: string): Promise<LabPod> {
    const [workload] = await this.reaches(app, 'INTERCEPTED');
    if (workload === undefined) {
      throw new Error(`no pod of ${app}`);
    }
    const [ip4 = '', ip6 = ''] = workload.ips;
    const netns = await this.#namespaceWith(ip4);
    const own = `nsl-${this.lab.id}-${app}`;
    const path = join('/run/netns', own);
    if (!existsSync(path)) {
      writeFileSync(path, '');
      await run('mount', ['--bind', this.cluster.node.path(`/run/netns/${netns}`), path]);
      this.lab.cleanup.add(`netns ${own}`, () => run('ip', ['netns', 'del', own]));
    }
    return {
      name: workload.podName,
      namespace: workload.namespace,
      uid: workload.podUid,
      runtime: 'runc',
      netns: path,
      ips: { 4: ip4, 6: ip6 },
      app: (words) => this.app(app, words, workload.namespace),
      stop: () => Promise.resolve(),
    };
  }

  async #namespaceWith(ip: string): Promise<string> {
    const { node } = this.cluster;
    const names = (await node.exec('ls', ['/run/netns'])).trim().split('\n');
    for (const name of names) {
      const { stdout } = await node.tryExec('nsenter', [`--net=/run/netns/${name}`, 'ip', '-o', 'addr']);
      if (stdout.includes(` ${ip}/`)) {
        return name;
      }
    }
    throw new Error(`no network namespace of ${names.join(', ')} has the address ${ip}`);
  }
}
