/** BPF for the rest of the agent. Kernel errors are `KernelError`, wrong arguments TypeError naming the argument. */

import { checkPositive, checkText } from './addon.js';
import { addon, type ProgramInfo } from './bpf-addon.js';

export type {
  FlatLayout,
  MapShape,
  PackedEntries,
  ProgramInfo,
  TcxEntry,
  TestRunResult,
} from './bpf-addon.js';
export {
  attachCgroup,
  attachClsact,
  attachSkLookup,
  attachSkMsg,
  attachTcx,
  attachTcxAsync,
  attachTracepoint,
  type CgroupHook,
  type ClsactPlace,
  detachClsact,
  queryClsact,
  queryTcx,
  spliceFlaws,
  type TcxDirection,
  tcxPrograms,
  tcxSupported,
} from './bpf-attach.js';
export { BpfLink, BpfMap, BpfProgram } from './bpf-handles.js';
export { BpfObject, type StructField, type StructLayout } from './bpf-object.js';
export { openRingBuffer, type RingBuffer } from './ring-buffer.js';

/** Any program on this machine; undefined where there is none of that id. */
export function programInfo(id: number): ProgramInfo | undefined {
  checkPositive(id, 'id');
  return addon.programInfoById(id);
}

/** False where `path` is on a bpffs already. Creates the last folder of it. */
export function mountBpffs(path: string): boolean {
  checkText(path, 'path');
  return addon.mountBpffs(path);
}

/** False where there is nothing at `path`. */
export function isBpffs(path: string): boolean {
  checkText(path, 'path');
  return addon.isBpffs(path);
}

/** As many values a per-CPU map holds for each key. */
export function possibleCpus(): number {
  return addon.possibleCpus();
}
