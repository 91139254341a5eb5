/** Whether the API server can be reached with what the configuration names, and tells what the agent has to know. */

import type { Config, KubernetesConfig } from '../config/config.js';
import {
  type Call,
  KubernetesClient,
  KubernetesError,
  type Write,
} from '../pods/sources/kubernetes-client.js';
import { openApiServerAccess } from '../pods/sources/kubernetes-config.js';
import { escapeSelector, listSchema } from '../pods/sources/kubernetes-objects.js';
import { type Check, type Finding, fail, ok, warn } from './check.js';

const DEADLINE_MS = 3_000;
const RESOURCES = ['pods', 'namespaces'] as const;
/** Asked for by name only to see whether it may be: nobody has a pod or namespace of this name. */
const NOBODY = 'nodesentry-doctor';

interface Question {
  /** As RBAC has it: `list pods`. */
  readonly permission: string;
  ask(client: KubernetesClient): Promise<unknown>;
}

/** Nothing is looked at before a check is run. */
export function kubernetesChecks({ sources, node }: Config, deadlineMs = DEADLINE_MS): Check[] {
  const { kubernetes } = sources;
  return kubernetes === undefined
    ? []
    : [{ name: 'Kubernetes', run: () => apiServer(kubernetes, node, deadlineMs) }];
}

async function apiServer(config: KubernetesConfig, node: string, deadlineMs: number): Promise<Finding[]> {
  let client: KubernetesClient;
  let server: string;
  try {
    const access = await openApiServerAccess(config.kubeconfig);
    client = new KubernetesClient(access, deadlineMs);
    server = access.server;
  } catch (error) {
    return [fail(messageOf(error), 'correct sources.kubernetes; see docs/configuration.md')];
  }
  const all = questions(node);
  const answers = await Promise.allSettled(all.map((question) => question.ask(client)));
  const failures = answers.flatMap((answer) =>
    answer.status === 'rejected' ? [answer.reason as unknown] : [],
  );
  const broken = failures.find((error) => !isForbidden(error));
  if (broken !== undefined) {
    return [fail(messageOf(broken), adviceFor(broken))];
  }
  const missing = all.flatMap(({ permission }, index) =>
    answers[index]?.status === 'rejected' ? [permission] : [],
  );
  if (missing.length > 0) {
    return [
      fail(
        `${server} answers, but does not allow us to ${missing.join(', ')}`,
        'apply deploy/base/rbac.yaml, or bind its ClusterRole to the user of the kubeconfig',
      ),
    ];
  }
  const [pods] = answers;
  const found = listSchema.safeParse(pods?.status === 'fulfilled' ? pods.value : undefined);
  const untold = await writings(client, server, config, node);
  return !found.success || (found.data.items ?? []).length > 0
    ? [...(untold.length > 0 ? [] : [ok(`${server} answers, and allows all that is needed`)]), ...untold]
    : [
        warn(
          `${server} knows no pod of the node ${JSON.stringify(node)}`,
          'see that `node` in the configuration is the name that kubectl get nodes shows',
        ),
        ...untold,
      ];
}

/** What the agent would tell the cluster, and may not: nothing else suffers from it. */
async function writings(
  client: KubernetesClient,
  server: string,
  config: KubernetesConfig,
  node: string,
): Promise<Finding[]> {
  const all = tellings(config, node);
  const answers = await Promise.allSettled(all.map((question) => question.ask(client)));
  const missing = all.flatMap(({ permission }, index) => {
    const answer = answers[index];
    return answer?.status === 'rejected' && isForbidden(answer.reason) ? [permission] : [];
  });
  const broken = answers.find((answer) => answer.status === 'rejected' && !isForbidden(answer.reason));
  return [
    ...(missing.length === 0
      ? []
      : [
          warn(
            `${server} does not allow us to ${missing.join(', ')}: what the agent would tell there is missing`,
            'apply deploy/base/rbac.yaml, or turn it off: events, removeStartupTaint and annotateNode of sources.kubernetes',
          ),
        ]),
    ...(broken?.status === 'rejected' ? [warn(messageOf(broken.reason), adviceFor(broken.reason))] : []),
  ];
}

/** Tried without doing it (`dryRun`), on what is not there where that can be: who may not hears 403, who may 404. */
function tellings(config: KubernetesConfig, node: string): Question[] {
  const never = new AbortController().signal;
  const events = `/apis/events.k8s.io/v1/namespaces/${NOBODY}/events`;
  const ownNode = `/api/v1/nodes/${encodeURIComponent(node)}`;
  const writing = (permission: string, path: string, write: Write): Question => {
    const call: Call = { what: permission, path, query: { dryRun: 'All' } };
    return { permission, ask: (client) => client.write(call, write, never).catch(unlessMissing) };
  };
  const nothing: Write = { kind: 'merge', patch: {} };
  const metadata = { name: NOBODY, namespace: NOBODY };
  return [
    ...(config.events
      ? [
          writing('create events', events, {
            kind: 'create',
            object: { apiVersion: 'events.k8s.io/v1', kind: 'Event', metadata },
          }),
          writing('patch events', `${events}/${NOBODY}`, nothing),
        ]
      : []),
    ...(config.removeStartupTaint
      ? [
          {
            permission: 'get nodes',
            ask: (client: KubernetesClient) =>
              client.get({ what: 'get nodes', path: ownNode }, never).catch(unlessMissing),
          },
        ]
      : []),
    ...(config.removeStartupTaint || config.annotateNode ? [writing('patch nodes', ownNode, nothing)] : []),
  ];
}

/** The first one lists the pods of this node. */
function questions(node: string): Question[] {
  const never = new AbortController().signal;
  const selector = { fieldSelector: `spec.nodeName=${escapeSelector(node)}` };
  return RESOURCES.flatMap((resource): Question[] => {
    const path = `/api/v1/${resource}`;
    const query = resource === 'pods' ? selector : {};
    const named =
      resource === 'pods' ? `/api/v1/namespaces/${NOBODY}/pods/${NOBODY}` : `/api/v1/namespaces/${NOBODY}`;
    return [
      {
        permission: `list ${resource}`,
        ask: (client) =>
          client.get({ what: `list ${resource}`, path, query: { ...query, limit: '1' } }, never),
      },
      {
        permission: `get ${resource}`,
        ask: (client) => client.get({ what: `get ${resource}`, path: named }, never).catch(unlessMissing),
      },
      {
        permission: `watch ${resource}`,
        ask: (client) => openWatch(client, `watch ${resource}`, path, query),
      },
    ];
  });
}

/** Over as soon as the API server has accepted it. */
async function openWatch(
  client: KubernetesClient,
  what: string,
  path: string,
  query: Readonly<Record<string, string>>,
): Promise<void> {
  const enough = new AbortController();
  // Without a version the API server first waits for its cache to be as new as etcd, which takes seconds.
  const from = { watch: 'true', resourceVersion: '0', timeoutSeconds: '1' };
  const call = { what, path, query: { ...query, ...from } };
  const handlers = { onOpen: () => enough.abort(), onEvent: () => undefined };
  try {
    await client.watch(call, DEADLINE_MS, handlers, enough.signal);
  } catch (error) {
    if (!enough.signal.aborted) {
      throw error;
    }
  }
}

function unlessMissing(error: unknown): void {
  if (!(error instanceof KubernetesError && error.code === 'NOT_FOUND')) {
    throw error;
  }
}

function isForbidden(error: unknown): boolean {
  return error instanceof KubernetesError && error.code === 'FORBIDDEN';
}

function adviceFor(error: unknown): string {
  const code = error instanceof KubernetesError ? error.code : undefined;
  return code === 'UNAUTHORIZED'
    ? 'renew the credentials that sources.kubernetes leads to'
    : code === 'UNAVAILABLE' || code === 'TIMEOUT'
      ? 'start the API server or correct its address; until it answers, new pods have no identity'
      : 'see the reason';
}

function messageOf(error: unknown): string {
  return error instanceof Error ? error.message : String(error);
}
