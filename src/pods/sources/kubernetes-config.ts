/** Where the API server is and how to prove who we are: a kubeconfig file, or what a pod finds in its container. */

import { accessSync, constants } from 'node:fs';
import type { RequestOptions } from 'node:https';

/** Every message names the field of our configuration that led there. */
export class KubeconfigError extends Error {
  override readonly name = 'KubeconfigError';
  readonly code = 'KUBECONFIG_INVALID';
}

export interface ApiServerAccess {
  /** `https://host:port`, possibly with a path, without a slash at the end. */
  readonly server: string;
  /** TLS material, credentials and agent for one request: read anew each time, since tokens and certificates rotate. */
  requestOptions(): Promise<RequestOptions>;
}

/**
 * `kubeconfig` is an absolute path; undefined means in-cluster. Throws KubeconfigError for what no retry can mend.
 * `field` is the word for where it was asked for. Exec and OIDC plugins, rotating tokens and proxies are the library's. It takes a second and 80 MB to load, so it is
 * loaded here, by the one source that needs it.
 */
export async function openApiServerAccess(
  kubeconfig: string | undefined,
  field = kubeconfig === undefined ? 'sources.kubernetes' : 'sources.kubernetes.kubeconfig',
): Promise<ApiServerAccess> {
  const { KubeConfig } = await import('@kubernetes/client-node');
  const config = new KubeConfig();
  const refuse = (what: string, cause?: unknown): KubeconfigError =>
    new KubeconfigError(`${field}: ${kubeconfig === undefined ? '' : `${kubeconfig}: `}${what}`, { cause });
  if (kubeconfig === undefined) {
    if ((process.env.KUBERNETES_SERVICE_HOST ?? '') === '') {
      throw refuse(
        'not in a cluster (KUBERNETES_SERVICE_HOST is not set): give the path of a file as kubeconfig',
      );
    }
    config.loadFromCluster();
  } else {
    try {
      config.loadFromFile(kubeconfig);
    } catch (error) {
      throw refuse(`not a kubeconfig that can be used: ${reasonOf(error)}`, error);
    }
  }
  const cluster = config.getCurrentCluster();
  const user = config.getCurrentUser();
  if (cluster === null || user === null) {
    const missing = cluster === null ? 'cluster' : 'user';
    throw refuse(
      `current-context ${JSON.stringify(config.getCurrentContext() ?? '')} leads to no ${missing}`,
    );
  }
  if (!URL.canParse(cluster.server) || !/^https?:$/.test(new URL(cluster.server).protocol)) {
    throw refuse(`the cluster's server: expected an https URL, got ${JSON.stringify(cluster.server)}`);
  }
  if (cluster.server.startsWith('http:') && !cluster.skipTLSVerify) {
    throw refuse(`the cluster's server ${cluster.server} is not https, which needs insecure-skip-tls-verify`);
  }
  const tokenFile: unknown = user.authProvider?.config?.tokenFile;
  const files = [cluster.caFile, user.certFile, user.keyFile, tokenFile];
  for (const file of files.filter((path) => typeof path === 'string' && path !== '')) {
    try {
      accessSync(String(file), constants.R_OK);
    } catch (error) {
      throw refuse(`${String(file)} cannot be read: ${reasonOf(error)}`, error);
    }
  }
  return {
    server: cluster.server,
    requestOptions: async () => {
      const options: RequestOptions = {};
      await config.applyToHTTPSOptions(options);
      return options;
    },
  };
}

function reasonOf(error: unknown): string {
  return error instanceof Error ? (error.message.split('\n', 1)[0] ?? '') : String(error);
}
