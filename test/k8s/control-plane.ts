/** etcd and kube-apiserver, real ones, on loopback ports and in a folder of their own. */

import { mkdirSync, readFileSync, writeFileSync } from 'node:fs';
import { createServer } from 'node:net';
import { join } from 'node:path';
import { parseAllDocuments, stringify } from 'yaml';
import { type Cleanup, Daemon, inNetns, run, tryRun, waitFor } from '../lab/exec.js';

const ROOT = join(import.meta.dirname, '../..');

const KEY = ['-newkey', 'ec', '-pkeyopt', 'ec_paramgen_curve:prime256v1', '-noenc', '-days', '2'];
const NO_AUTHORITY = 'basicConstraints=critical,CA:FALSE';
const CLIENT = ['-addext', 'extendedKeyUsage=clientAuth', '-addext', NO_AUTHORITY];
/** How pods know it: the first address of the service range, and its names. */
const SERVICE_NAMES = ['IP:10.96.0.1', 'DNS:kubernetes.default.svc', 'DNS:kubernetes'];

/** Those parts of Kubernetes, compiled where they are not yet; the folder that they are in. */
export async function buildKubernetes(...parts: readonly string[]): Promise<string> {
  const printed = await run(join(ROOT, 'scripts/build-kubernetes'), parts, { timeoutMs: 3_600_000 });
  return printed.trim();
}

export interface KubeObject {
  apiVersion?: string;
  kind?: string;
  metadata: { name: string; namespace?: string; uid?: string; [key: string]: unknown };
  [key: string]: unknown;
}

export interface ControlPlaneOptions {
  readonly directory: string;
  readonly cleanup: Cleanup;
  /** Name of a network namespace to run in; default: that of the test. */
  readonly netns?: string;
  /** Of the services' addresses. */
  readonly serviceRanges?: string;
  /** Where it serves a cluster with nodes: their authorizer, and endpoints of its own. Default: loopback, and none. */
  readonly address?: string;
}

export class ControlPlane {
  readonly #options: ControlPlaneOptions;
  readonly #ports: { etcd: number; peer: number; api: number };
  #api: Daemon | undefined;
  #starts = 0;

  private constructor(options: ControlPlaneOptions, ports: { etcd: number; peer: number; api: number }) {
    this.#options = options;
    this.#ports = ports;
  }

  static async start(options: ControlPlaneOptions): Promise<ControlPlane> {
    const [etcd = 0, peer = 0, api = 0] = await freePorts(3);
    const plane = new ControlPlane(options, { etcd, peer, api });
    mkdirSync(options.directory, { recursive: true });
    await plane.#makeCertificates();
    await plane.#startEtcd();
    await plane.startApiServer();
    return plane;
  }

  get port(): number {
    return this.#ports.api;
  }

  /** Waits until it is ready to serve. */
  async startApiServer(): Promise<void> {
    const binary = join(await buildKubernetes('kube-apiserver'), 'kube-apiserver');
    const { address } = this.#options;
    this.#starts += 1;
    const api = this.#daemon(`kube-apiserver-${this.#starts}`, binary, [
      `--etcd-servers=http://127.0.0.1:${this.#ports.etcd}`,
      ...(address === undefined
        ? ['--bind-address=127.0.0.1', '--advertise-address=127.0.0.1']
        : [`--advertise-address=${address}`]),
      `--secure-port=${this.#ports.api}`,
      `--tls-cert-file=${this.#path('server.crt')}`,
      `--tls-private-key-file=${this.#path('server.key')}`,
      `--client-ca-file=${this.#path('ca.crt')}`,
      '--service-account-issuer=https://kubernetes.default.svc',
      `--service-account-key-file=${this.#path('sa.key')}`,
      `--service-account-signing-key-file=${this.#path('sa.key')}`,
      `--service-cluster-ip-range=${this.#options.serviceRanges ?? '10.96.0.0/16'}`,
      ...(address === undefined
        ? [
            '--authorization-mode=RBAC',
            '--endpoint-reconciler-type=none',
            // A pod's writer is this test, not a kubelet.
            '--disable-admission-plugins=TaintNodesByCondition',
          ]
        : [
            '--authorization-mode=Node,RBAC',
            '--enable-admission-plugins=NodeRestriction',
            '--allow-privileged=true',
            '--kubelet-preferred-address-types=InternalIP',
          ]),
    ]);
    this.#api = api;
    await waitFor(
      'kube-apiserver to be ready',
      async () => {
        if (!api.running) {
          throw new Error(`kube-apiserver ended:\n${api.log().slice(-3000)}`);
        }
        return (await this.#curl('GET', '/readyz')).body === 'ok';
      },
      60_000,
      100,
    );
  }

  async stopApiServer(signal: NodeJS.Signals): Promise<void> {
    await this.#api?.stop(signal);
  }

  /** As cluster administrator. Rejects with what the API server says. */
  async call(method: string, path: string, body?: object, type = 'application/json'): Promise<KubeObject> {
    const answer = await this.#curl(method, path, body, type);
    if (answer.status < 200 || answer.status > 299) {
      throw new Error(`${method} ${path}: HTTP ${answer.status}: ${answer.body}`);
    }
    return JSON.parse(answer.body) as KubeObject;
  }

  /** Every object of a YAML file; `namespace` is where those go that need one and name none, as Kustomize does it. */
  async createFrom(file: string, namespace: string): Promise<void> {
    for (const document of parseAllDocuments(readFileSync(file, 'utf8'))) {
      const object = (document as { toJS(): unknown }).toJS() as KubeObject;
      await this.call('POST', collectionOf(object, namespace), object);
    }
  }

  async createNamespace(name: string, labels: Record<string, string> = {}): Promise<void> {
    await this.call('POST', '/api/v1/namespaces', { metadata: { name, labels } });
    // What kube-controller-manager would do.
    await this.createServiceAccount(name, 'default');
  }

  async createServiceAccount(namespace: string, name: string): Promise<void> {
    await this.call('POST', `/api/v1/namespaces/${namespace}/serviceaccounts`, { metadata: { name } });
  }

  /** A pod as the scheduler leaves one, before the kubelet has seen it; its UID. */
  async schedulePod(namespace: string, name: string, spec: object = {}): Promise<string> {
    const made = await this.call('POST', `/api/v1/namespaces/${namespace}/pods`, {
      metadata: { name, labels: { app: name } },
      spec: { nodeName: 'node-a', containers: [{ name: 'app', image: 'localhost/app:1' }], ...spec },
    });
    return made.metadata.uid ?? '';
  }

  /** A running pod as scheduler and kubelet leave one; its UID. */
  async createPod(
    namespace: string,
    name: string,
    pod: { ips?: readonly string[]; spec?: object; metadata?: object } = {},
  ): Promise<string> {
    const made = await this.call('POST', `/api/v1/namespaces/${namespace}/pods`, {
      metadata: { name, ...pod.metadata },
      spec: { nodeName: 'node-a', containers: [{ name: 'app', image: 'localhost/app:1' }], ...pod.spec },
    });
    await this.setStatus(namespace, name, {
      phase: 'Running',
      podIPs: (pod.ips ?? ['10.66.0.3']).map((ip) => ({ ip })),
      podIP: pod.ips?.[0] ?? '10.66.0.3',
    });
    return made.metadata.uid ?? '';
  }

  async setStatus(namespace: string, name: string, status: object): Promise<void> {
    await this.#merge(`/api/v1/namespaces/${namespace}/pods/${name}/status`, { status });
  }

  /** null removes a label. */
  async label(path: string, labels: Record<string, string | null>): Promise<void> {
    await this.#merge(path, { metadata: { labels } });
  }

  async deletePod(namespace: string, name: string): Promise<void> {
    await this.call('DELETE', `/api/v1/namespaces/${namespace}/pods/${name}?gracePeriodSeconds=0`);
  }

  /** History up to now goes (etcd's gRPC gateway, `/v3/kv/compaction`). */
  async compactEtcd(): Promise<void> {
    const etcd = async (path: string, body: object): Promise<{ header: { revision: string } }> =>
      JSON.parse(
        await run(
          ...this.#words('curl', [
            '-sSf',
            '-d',
            JSON.stringify(body),
            `http://127.0.0.1:${this.#ports.etcd}/v3/kv/${path}`,
          ]),
        ),
      ) as { header: { revision: string } };
    const { header } = await etcd('range', { key: Buffer.from('none').toString('base64') });
    await etcd('compaction', { revision: header.revision, physical: true });
  }

  /**
   * A kubeconfig with a token of a service account, by way of `port` where that is a relay's; bound to a pod as the kubelet
   * asks for one.
   */
  async writeKubeconfig(
    path: string,
    account: { namespace: string; name: string },
    port = this.port,
    pod?: { name: string; uid: string },
  ): Promise<void> {
    const made = await this.call(
      'POST',
      `/api/v1/namespaces/${account.namespace}/serviceaccounts/${account.name}/token`,
      {
        apiVersion: 'authentication.k8s.io/v1',
        kind: 'TokenRequest',
        spec: {
          expirationSeconds: 3600,
          ...(pod === undefined ? {} : { boundObjectRef: { apiVersion: 'v1', kind: 'Pod', ...pod } }),
        },
      },
    );
    const { token } = made.status as { token: string };
    writeFileSync(
      path,
      stringify({
        apiVersion: 'v1',
        kind: 'Config',
        clusters: [
          {
            name: 'c',
            cluster: { server: `https://127.0.0.1:${port}`, 'certificate-authority': this.#path('ca.crt') },
          },
        ],
        users: [{ name: 'u', user: { token } }],
        contexts: [{ name: 'x', context: { cluster: 'c', user: 'u' } }],
        'current-context': 'x',
      }),
      { mode: 0o600 },
    );
  }

  /** A kubeconfig for a client certificate: `subject` such as `/O=system:nodes/CN=system:node:a`. */
  async writeCertifiedKubeconfig(name: string, subject: string): Promise<string> {
    await this.#issue(name, subject, ...CLIENT);
    const path = this.#path(`${name}.kubeconfig`);
    const base64 = (file: string) => readFileSync(this.#path(file)).toString('base64');
    const cluster = {
      server: `https://${this.#options.address ?? '127.0.0.1'}:${this.port}`,
      'certificate-authority-data': base64('ca.crt'),
    };
    const user = {
      'client-certificate-data': base64(`${name}.crt`),
      'client-key-data': base64(`${name}.key`),
    };
    writeFileSync(
      path,
      stringify({
        apiVersion: 'v1',
        kind: 'Config',
        clusters: [{ name: 'c', cluster }],
        users: [{ name: 'u', user }],
        contexts: [{ name: 'x', context: { cluster: 'c', user: 'u' } }],
        'current-context': 'x',
      }),
      { mode: 0o600 },
    );
    return path;
  }

  /** Signs the tokens of service accounts, and whom they trust. */
  get authority(): { readonly signingKey: string; readonly certificate: string } {
    return { signingKey: this.#path('sa.key'), certificate: this.#path('ca.crt') };
  }

  #path(name: string): string {
    return join(this.#options.directory, name);
  }

  #daemon(name: string, command: string, args: readonly string[]): Daemon {
    const daemon = new Daemon(name, this.#path(`${name}.log`), ...this.#words(command, args));
    this.#options.cleanup.add(name, () => daemon.stop('SIGKILL'));
    return daemon;
  }

  #words(command: string, args: readonly string[]): [string, readonly string[]] {
    const { netns } = this.#options;
    return netns === undefined ? [command, args] : inNetns(netns, command, args);
  }

  async #startEtcd(): Promise<void> {
    const { etcd, peer } = this.#ports;
    const [client, peers] = [`http://127.0.0.1:${etcd}`, `http://127.0.0.1:${peer}`];
    const daemon = this.#daemon('etcd', 'etcd', [
      `--data-dir=${this.#path('etcd')}`,
      `--listen-client-urls=${client}`,
      `--advertise-client-urls=${client}`,
      `--listen-peer-urls=${peers}`,
      `--initial-advertise-peer-urls=${peers}`,
      `--initial-cluster=default=${peers}`,
      '--unsafe-no-fsync',
    ]);
    await daemon.logged(/serving insecure client requests/);
  }

  async #makeCertificates(): Promise<void> {
    const openssl = (...args: string[]) => run('openssl', args);
    await openssl('ecparam', '-name', 'prime256v1', '-genkey', '-noout', '-out', this.#path('sa.key'));
    await openssl(
      ...['req', '-x509', ...KEY, '-subj', '/CN=test-ca'],
      ...['-keyout', this.#path('ca.key'), '-out', this.#path('ca.crt')],
    );
    const { address } = this.#options;
    const names = ['IP:127.0.0.1', ...(address === undefined ? [] : [`IP:${address}`, ...SERVICE_NAMES])];
    const server = ['-addext', `subjectAltName=${names.join(',')}`, '-addext', NO_AUTHORITY];
    await this.#issue('server', '/CN=kube-apiserver', ...server);
    await this.#issue('admin', '/O=system:masters/CN=admin', ...CLIENT);
  }

  async #issue(name: string, subject: string, ...more: readonly string[]): Promise<void> {
    await run('openssl', [
      ...['req', '-x509', '-CA', this.#path('ca.crt'), '-CAkey', this.#path('ca.key'), ...KEY],
      ...['-subj', subject, ...more],
      ...['-keyout', this.#path(`${name}.key`), '-out', this.#path(`${name}.crt`)],
    ]);
  }

  async #merge(path: string, body: object): Promise<void> {
    await this.call('PATCH', path, body, 'application/merge-patch+json');
  }

  async #curl(
    method: string,
    path: string,
    body?: object,
    type = 'application/json',
  ): Promise<{ status: number; body: string }> {
    const args = [
      ...['-sS', '--max-time', '30', '-X', method, '-w', '\n%{http_code}'],
      ...[
        '--cacert',
        this.#path('ca.crt'),
        '--cert',
        this.#path('admin.crt'),
        '--key',
        this.#path('admin.key'),
      ],
      ...(body === undefined ? [] : ['-H', `content-type: ${type}`, '--data-binary', '@-']),
      `https://127.0.0.1:${this.#ports.api}${path}`,
    ];
    const { stdout } = await tryRun(...this.#words('curl', args), {
      input: body === undefined ? '' : JSON.stringify(body),
    });
    const cut = stdout.lastIndexOf('\n');
    return { status: Number(stdout.slice(cut + 1)), body: stdout.slice(0, cut) };
  }
}

function collectionOf({ apiVersion, kind, metadata }: KubeObject, namespace: string): string {
  const group = apiVersion === 'v1' ? '/api/v1' : `/apis/${apiVersion}`;
  const place = kind === 'ServiceAccount' ? `/namespaces/${metadata.namespace ?? namespace}` : '';
  return `${group}${place}/${`${String(kind).toLowerCase()}s`.replace(/ys$/, 'ies')}`;
}

/** Below the ports that the kernel gives out by itself; each process has ten of its own there. */
const [FIRST_PORT, PROCESSES, EACH] = [20_000, 1_200, 10] as const;

async function freePorts(count: number): Promise<number[]> {
  const first = FIRST_PORT + (process.pid % PROCESSES) * EACH;
  const free: number[] = [];
  for (let port = first; port < first + EACH && free.length < count; port++) {
    if (await isFree(port)) {
      free.push(port);
    }
  }
  if (free.length < count) {
    throw new Error(`of the ports ${first} to ${first + EACH - 1} only ${free.length} are free`);
  }
  return free;
}

function isFree(port: number): Promise<boolean> {
  const server = createServer();
  return new Promise((resolve) => {
    server.once('error', () => resolve(false));
    server.listen(port, '127.0.0.1', () => server.close(() => resolve(true)));
  });
}
