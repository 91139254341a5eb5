/** The admission webhook, called by a real API server, with the rights and configurations that deploy/webhook gives. */

import { mkdtempSync, rmSync } from 'node:fs';
import type { AddressInfo } from 'node:net';
import { createServer, type Socket, connect as tcp } from 'node:net';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { connect } from 'node:tls';
import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import { KubernetesClient } from '../../src/pods/sources/kubernetes-client.js';
import { openApiServerAccess } from '../../src/pods/sources/kubernetes-config.js';
import { type RotationTerms, TERMS } from '../../src/webhook/rotation.js';
import { runWebhook } from '../../src/webhook/webhook.js';
import { kustomize, type Manifest, ROOT } from '../image/manifests.js';
import { Cleanup, Daemon, waitFor } from '../lab/exec.js';
import { ControlPlane, type KubeObject } from './control-plane.js';

const NAMESPACE = 'nodesentry-system';
const NAME = 'nodesentry-webhook';
const HOOKS = ['mutating', 'validating'].map(
  (kind) => `/apis/admissionregistration.k8s.io/v1/${kind}webhookconfigurations/${NAME}`,
);
const SECRET = `/api/v1/namespaces/${NAMESPACE}/secrets/${NAME}`;
const EXPLICIT = { annotations: { 'nodesentry.io/explicit-proxy': 'enabled' } };
const WRONG = { annotations: { 'nodesentry.io/failure': 'ajar' } };
const REFUSED = 'nodesentry.io/failure: expected closed or open, got \\"ajar\\"';

const cleanup = new Cleanup();
let folder: string;
let plane: ControlPlane;
let port: number;

beforeAll(async () => {
  folder = mkdtempSync(join(tmpdir(), 'nodesentry-webhook-'));
  cleanup.add('the folder', () => rmSync(folder, { recursive: true, force: true }));
  plane = await ControlPlane.start({ directory: folder, cleanup });
  await plane.createNamespace(NAMESPACE);
  await plane.createNamespace('apps');
  port = await freePort();
  for (const object of await kustomize('webhook')) {
    if (object.kind !== 'Deployment') {
      await create(object);
    }
  }
  await plane.writeKubeconfig(join(folder, 'webhook'), { namespace: NAMESPACE, name: NAME });
}, 900_000);
afterAll(() => cleanup.run());

const PLURALS: Readonly<Record<string, string>> = { PodDisruptionBudget: 'poddisruptionbudgets' };

/** A control plane alone has no way to a service: the address takes its place. */
async function create(object: Manifest): Promise<void> {
  const { apiVersion, kind, metadata, webhooks, ...rest } = object as Manifest & KubeObject;
  const hooks = (webhooks as { clientConfig: { service: { path: string } } }[] | undefined)?.map((hook) => ({
    ...hook,
    clientConfig: { url: `https://127.0.0.1:${port}${hook.clientConfig.service.path}` },
  }));
  const group = apiVersion === 'v1' ? 'api/v1' : `apis/${apiVersion}`;
  const place = metadata.namespace === undefined ? '' : `/namespaces/${metadata.namespace}`;
  await plane.call('POST', `/${group}${place}/${PLURALS[kind ?? ''] ?? `${kind?.toLowerCase()}s`}`, {
    apiVersion,
    kind,
    metadata,
    ...rest,
    ...(hooks && { webhooks: hooks }),
  });
}

function freePort(): Promise<number> {
  const server = createServer();
  return new Promise((resolve) => {
    server.listen(0, '127.0.0.1', () => {
      const { port: free } = server.address() as AddressInfo;
      server.close(() => resolve(free));
    });
  });
}

let pods = 0;
const createPod = (metadata: object, spec: object = {}, namespace = 'apps') =>
  plane.call('POST', `/api/v1/namespaces/${namespace}/pods`, {
    metadata: { name: `pod-${++pods}`, ...metadata },
    spec: { containers: [{ name: 'app', image: 'localhost/app:1' }], ...spec },
  });

interface Container {
  readonly env?: readonly { readonly name: string; readonly value?: string }[];
}
function environment(pod: KubeObject): Record<string, string | undefined>[] {
  const { containers, initContainers = [] } = pod.spec as {
    containers: Container[];
    initContainers?: Container[];
  };
  return [...containers, ...initContainers].map(({ env = [] }) =>
    Object.fromEntries(env.map(({ name, value }) => [name, value])),
  );
}

async function setPolicy(failurePolicy: 'Ignore' | 'Fail'): Promise<void> {
  for (const path of HOOKS) {
    const { webhooks, metadata } = await plane.call('GET', path);
    const changed = (webhooks as object[]).map((hook) => ({ ...hook, failurePolicy }));
    await plane.call('PUT', path, { ...(await plane.call('GET', path)), metadata, webhooks: changed });
  }
}

/** The API server learns of a configuration by its own watch, a moment later. */
const untilCalled = () =>
  waitFor('the API server to call the webhook', async () =>
    createPod(WRONG).then(
      () => false,
      (error: Error) => error.message.includes(REFUSED),
    ),
  );

test('as a command: sets up pods in explicit mode, refuses wrong ones with the text, and leaves the others alone', async () => {
  const daemon = new Daemon('webhook', join(folder, 'webhook.log'), join(ROOT, 'bin/nodesentry'), [
    ...['webhook', '--kubeconfig', join(folder, 'webhook'), '--address', '127.0.0.1', '--port', String(port)],
    ...['--server-name', '127.0.0.1', '--proxy-port', '16001', '--direct', 'localhost,10.0.0.0/8'],
  ]);
  try {
    await daemon.logged(/webhook running/);
    await untilCalled();
    const made = await createPod(EXPLICIT, { initContainers: [{ name: 'init', image: 'localhost/app:1' }] });
    const url = 'http://$(NODESENTRY_NODE_IP):16001';
    const expected = { HTTP_PROXY: url, https_proxy: url, no_proxy: 'localhost,10.0.0.0/8' };
    expect(environment(made)).toMatchObject([expected, expected]);
    expect(environment(await createPod({}))).toEqual([{}]);
    const meshed = await createPod({
      annotations: {
        'nodesentry.io/mesh-requests': 'enabled',
        'nodesentry.io/mesh-resources': '{"pod": {"cpu": "10m", "memory": "8Mi"}}',
      },
    });
    expect(meshed).toMatchObject({
      metadata: { annotations: { 'nodesentry.io/mesh-requests-added': 'cpu 10m, memory 8Mi' } },
      spec: { containers: [{ resources: { requests: { cpu: '10m', memory: '8Mi' } } }] },
    });

    const { name } = made.metadata;
    const path = `/api/v1/namespaces/apps/pods/${name}`;
    await expect(
      plane.call('PATCH', path, { metadata: WRONG }, 'application/merge-patch+json'),
    ).rejects.toThrow(REFUSED);
    await plane.label(path, { team: 'a' });
    await expect(
      createPod({ labels: { 'nodesentry.io/intercept': 'enabled' } }, { hostNetwork: true }),
    ).rejects.toThrow('HOST_NETWORK: the pod uses the host network');
    // Its own namespace is left alone, or it could not come back.
    await createPod(WRONG, {}, NAMESPACE);
  } finally {
    await daemon.stop('SIGTERM');
  }
}, 300_000);

describe('while no webhook runs', () => {
  test('nobody is held up by default', async () => {
    expect(environment(await createPod(EXPLICIT))).toEqual([{}]);
    await createPod(WRONG);
  });

  test('with failurePolicy Fail only pods that say something of ours are', async () => {
    await setPolicy('Fail');
    try {
      await waitFor('the API server to hear of it', () =>
        createPod(EXPLICIT).then(
          () => false,
          (error: Error) => /failed calling webhook/.test(error.message),
        ),
      );
      await expect(createPod(WRONG)).rejects.toThrow('failed calling webhook \\"pods.nodesentry.io\\"');
      await createPod({});
    } finally {
      await setPolicy('Ignore');
    }
  });
});

describe('two replicas', () => {
  const QUICK: RotationTerms = { lifetimeMs: 60_000, renewMs: 10_000, spreadMs: 4_000, roundMs: 300 };

  async function replica(terms: RotationTerms, listen: number, signal: AbortSignal) {
    const access = await openApiServerAccess(join(folder, 'webhook'), '--kubeconfig');
    let listening: () => void = () => undefined;
    const ready = new Promise<void>((resolve) => {
      listening = resolve;
    });
    const silent = { info: () => undefined, warn: () => undefined, error: () => undefined };
    const done = runWebhook(
      {
        client: new KubernetesClient(access, 10_000),
        cluster: { namespace: NAMESPACE, secret: NAME, configuration: NAME },
        names: ['127.0.0.1'],
        host: '127.0.0.1',
        port: listen,
        proxy: { port: 15_001, noProxy: 'localhost' },
        isServed: () => true,
        terms,
        nowMs: Date.now,
        log: silent,
        onListening: listening,
      },
      signal,
    );
    await Promise.race([ready, done]);
    return { done };
  }

  const certificateAt = (at: number) =>
    new Promise<string>((resolve, reject) => {
      const socket = connect({ host: '127.0.0.1', port: at, rejectUnauthorized: false }, () => {
        resolve(socket.getPeerCertificate().fingerprint256);
        socket.destroy();
      });
      socket.on('error', reject);
    });

  /** As a Service does it: connections to the one and the other in turn, each a new one for a call. */
  async function balance(targets: readonly number[]) {
    const open = new Set<Socket>();
    let turn = 0;
    const server = createServer((socket) => {
      const target = tcp(targets[turn++ % targets.length] ?? 0, '127.0.0.1');
      for (const [one, other] of [
        [socket, target],
        [target, socket],
      ] as const) {
        open.add(one);
        one.on('error', () => other.destroy()).on('close', () => open.delete(one));
        one.pipe(other);
      }
    });
    await new Promise<void>((resolve) => {
      server.listen(port, '127.0.0.1', resolve);
    });
    return {
      /** Between two calls: an API server would keep its connection, and never meet a new certificate. */
      disconnect: () => {
        for (const socket of open) {
          socket.destroy();
        }
      },
      close: () => {
        server.close();
        for (const socket of open) {
          socket.destroy();
        }
      },
    };
  }

  test('share one certificate, and no pod waits for a new one', async () => {
    await plane.call('PATCH', SECRET, { data: null }, 'application/merge-patch+json');
    const stop = new AbortController();
    const ports = [await freePort(), await freePort()] as const;
    const running = await Promise.all(ports.map((at) => replica(QUICK, at, stop.signal)));
    const balancer = await balance(ports);
    try {
      await untilCalled();
      const seen = new Set<string>();
      const caBundles = new Set<string>();
      await setPolicy('Fail');
      const outcomes: string[] = [];
      await waitFor(
        'three certificates to have been served by both',
        async () => {
          balancer.disconnect();
          outcomes.push(
            await createPod(EXPLICIT).then(
              (pod) => (environment(pod)[0]?.HTTP_PROXY === undefined ? 'untouched' : 'done'),
              (error: Error) => error.message,
            ),
          );
          for (const path of HOOKS) {
            const { webhooks } = await plane.call('GET', path);
            caBundles.add((webhooks as [{ clientConfig: { caBundle: string } }])[0].clientConfig.caBundle);
          }
          const [one, other] = await Promise.all(ports.map(certificateAt));
          if (one === other && one !== undefined) {
            seen.add(one);
          }
          return seen.size >= 3;
        },
        90_000,
        50,
      );
      expect(outcomes.length).toBeGreaterThan(30);
      expect(outcomes.filter((outcome) => outcome !== 'done')).toEqual([]);
      // The first alone, with the second, the second alone, and with the third.
      expect(caBundles.size).toBe(4);
    } finally {
      await setPolicy('Ignore');
      balancer.close();
      stop.abort();
      await Promise.all(running.map(({ done }) => done));
    }
  }, 300_000);

  test('have a right to their own Secret and configurations, and to no other', async () => {
    expect(TERMS.spreadMs).toBeGreaterThan(2 * TERMS.roundMs);
    const client = new KubernetesClient(
      await openApiServerAccess(join(folder, 'webhook'), '--kubeconfig'),
      10_000,
    );
    const { signal } = new AbortController();
    const get = (path: string) => client.get({ what: 'try', path }, signal);
    await get(SECRET);
    for (const path of [
      `/api/v1/namespaces/${NAMESPACE}/secrets`,
      `/api/v1/namespaces/${NAMESPACE}/secrets/other`,
      '/api/v1/namespaces/apps/secrets/nodesentry-webhook',
      '/api/v1/pods',
      '/apis/admissionregistration.k8s.io/v1/mutatingwebhookconfigurations/other',
    ]) {
      await expect(get(path)).rejects.toMatchObject({ code: 'FORBIDDEN' });
    }
  });
});
