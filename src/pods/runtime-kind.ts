/** Which kind of runtime stands behind a CRI handler and a containerd runtime type. */

import type { RuntimeKind } from './pod.js';

/** Handler (or runtime type) name to kind; what the configuration adds to the built-in names. */
export type HandlerTable = Readonly<Record<string, RuntimeKind>>;

const RUNC_TYPE = 'io.containerd.runc.v2';

export const BUILT_IN_HANDLERS: HandlerTable = {
  runc: 'runc',
  crun: 'runc',
  youki: 'runc',
  runsc: 'runsc',
  gvisor: 'runsc',
  kata: 'rund',
  'kata-qemu': 'rund',
  'kata-clh': 'rund',
  'kata-fc': 'rund',
  'kata-dragonball': 'rund',
  rund: 'rund',
};

export const BUILT_IN_RUNTIME_TYPES: HandlerTable = {
  [RUNC_TYPE]: 'runc',
  'io.containerd.runsc.v1': 'runsc',
  'io.containerd.kata.v2': 'rund',
  'io.containerd.rund.v2': 'rund',
};

/**
 * The configured table first, then the built-in handlers, then the runtime type. The runc type proves nothing
 * about an unknown handler: gVisor runs under it too, by way of `BinaryName`. The default handler (empty) is
 * whatever its type says, and runc where no type is known.
 */
export function runtimeKindOf(configured: HandlerTable, handler: string, runtimeType: string): RuntimeKind {
  const byHandler = kindIn(configured, handler) ?? kindIn(BUILT_IN_HANDLERS, handler);
  if (byHandler !== undefined) {
    return byHandler;
  }
  if (runtimeType === '') {
    return handler === '' ? 'runc' : 'unknown';
  }
  const configuredType = kindIn(configured, runtimeType);
  if (configuredType !== undefined) {
    return configuredType;
  }
  if (runtimeType === RUNC_TYPE && handler !== '') {
    return 'unknown';
  }
  return kindIn(BUILT_IN_RUNTIME_TYPES, runtimeType) ?? 'unknown';
}

function kindIn(table: HandlerTable, name: string): RuntimeKind | undefined {
  return Object.hasOwn(table, name) ? table[name] : undefined;
}
