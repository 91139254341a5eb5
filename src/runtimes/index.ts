import type { RuntimeKind } from '../pods/pod.js';
import { locateByEvidence } from './locate.js';
import { runc } from './runc.js';
import { rund } from './rund.js';
import { runsc } from './runsc.js';
import type { Runtime } from './runtime.js';

/** A handler nobody has named: intercepted like the others at the host-side interface, and reported. */
const unknown: Runtime = { kind: 'unknown', capabilities: { splice: false }, locate: locateByEvidence };

const RUNTIMES: Readonly<Record<RuntimeKind, Runtime>> = { runc, runsc, rund, unknown };

export function runtimeOf(kind: RuntimeKind): Runtime {
  return RUNTIMES[kind];
}
