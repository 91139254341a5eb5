/** An API server for a whole file, by way of a relay that can be cut, and the agent's account at it. */

import { mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import type { Cleanup } from '../lab/exec.js';
import { ControlPlane } from './control-plane.js';
import { Relay } from './relay.js';

export const ACCOUNT = { namespace: 'nodesentry-system', name: 'nodesentry' };
export const RBAC = join(import.meta.dirname, '../../deploy/base/rbac.yaml');

export interface RelayedPlane {
  readonly folder: string;
  readonly plane: ControlPlane;
  readonly relay: Relay;
  /** Of the agent's service account, by way of the relay. */
  readonly kubeconfig: string;
}

export async function startRelayedPlane(cleanup: Cleanup): Promise<RelayedPlane> {
  const folder = mkdtempSync(join(tmpdir(), 'nodesentry-k8s-'));
  cleanup.add('the folder', () => rmSync(folder, { recursive: true, force: true }));
  const plane = await ControlPlane.start({ directory: folder, cleanup });
  const relay = await Relay.open(plane.port);
  cleanup.add('the relay', () => relay.close());
  await plane.createNamespace(ACCOUNT.namespace);
  await plane.createFrom(RBAC, ACCOUNT.namespace);
  const kubeconfig = join(folder, 'kubeconfig');
  await plane.writeKubeconfig(kubeconfig, ACCOUNT, relay.port);
  return { folder, plane, relay, kubeconfig };
}
