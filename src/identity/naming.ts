/** Which pods have a name by the word of those who may say so, and why others have none. */

import { authoritiesAmong, isConfirmed, isNamed } from '../pods/confirmation.js';
import type { Pod } from '../pods/pod.js';
import type { PodSource } from '../pods/source.js';
import { IdentityError } from './errors.js';

export type Source = Pick<PodSource, 'name' | 'lastError'>;

export interface NamingOptions {
  /** Whether every configured source has delivered at least once. */
  readonly synced: () => boolean;
  /** Those that are configured. */
  readonly sources: readonly Source[];
}

export class Naming {
  readonly #options: NamingOptions;
  /** Without whose word a pod has no identity. */
  readonly #authorities: readonly Source[];

  constructor(options: NamingOptions) {
    this.#options = options;
    this.#authorities = authoritiesAmong(options.sources);
  }

  /** Whether an authority has told of the pod. */
  isConfirmed(pod: Pod): boolean {
    return isConfirmed(pod, this.#authorities);
  }

  /** Throws IdentityError where the pod has no name, or none yet. */
  requireNamed(pod: Pod): void {
    if (isNamed(pod, this.#authorities)) {
      return;
    }
    if (!this.isConfirmed(pod)) {
      throw this.#notToldYet(pod, namesOf(this.#authorities, 'or'), this.#authorityBehind());
    }
    if (!pod.sources.includes('kubernetes')) {
      throw this.#unconfirmed(pod);
    }
    throw new IdentityError(
      'WORKLOAD_NOT_FOUND',
      `pod ${pod.namespace}/${pod.name} has no service account, and so no identity: Kubernetes gives none to static pods of the kubelet`,
    );
  }

  /** The runtime is late where the CNI plugin tells of a pod that starts: it may know the account in a moment. */
  #unconfirmed(pod: Pod): IdentityError {
    const { sources } = this.#options;
    const cri = sources.find(({ name }) => name === 'cri');
    if (cri !== undefined && !pod.sources.includes('cri')) {
      return this.#notToldYet(pod, cri.name, cri.lastError);
    }
    return new IdentityError(
      'WORKLOAD_UNCONFIRMED',
      `no source knows the service account of pod ${pod.namespace}/${pod.name} (asked: ${namesOf(sources, 'and')}): add the source kubernetes, or name the account of such pods, as in sources: {cri: {serviceAccount: default}}`,
    );
  }

  #notToldYet(pod: Pod, names: string, why: string | undefined): IdentityError {
    return new IdentityError(
      'NOT_SYNCED',
      `${names} has not told of pod ${pod.namespace}/${pod.name} yet${why === undefined ? '' : ` (${why})`}`,
    );
  }

  /** Why an authority may not have told all; undefined while all follow. */
  #authorityBehind(): string | undefined {
    const behind = this.#authorities.find(({ lastError }) => lastError !== undefined);
    return behind === undefined ? undefined : `${behind.name} is behind: ${behind.lastError}`;
  }

  /** For a pod that is not there: it may be yet to come. */
  unknown(message: string): IdentityError {
    const behind = this.#options.synced() ? this.#authorityBehind() : 'not every pod source has answered yet';
    return behind === undefined
      ? new IdentityError('WORKLOAD_NOT_FOUND', message)
      : new IdentityError('NOT_SYNCED', `${message}; ${behind}`);
  }
}

function namesOf(sources: readonly Source[], last: string): string {
  return sources.map(({ name }) => name).join(` ${last} `);
}
