/** Records that BPF programs send, as they come. */

import { checkFunction, checkPositive, throwingOutside } from './addon.js';
import { addon } from './bpf-addon.js';
import { type BpfMap, checkMap } from './bpf-handles.js';

export interface RingBuffer {
  /** Records dropped because JavaScript was behind; what the kernel could not write is for the program to count. */
  readonly lost: bigint;
  close(): void;
}

/** Reads on a thread of its own and delivers in batches. Does not keep the process alive. */
export function openRingBuffer(
  map: BpfMap,
  onRecords: (records: Buffer[]) => void,
  options: {
    readonly queueLimit?: number;
    /** Looked at this often too, for programs that write without waking; default only when woken. */
    readonly periodMs?: number;
  } = {},
): RingBuffer {
  const { queueLimit = 65_536, periodMs } = options;
  checkMap(map);
  checkFunction(onRecords, 'onRecords');
  checkPositive(queueLimit, 'queueLimit');
  if (periodMs !== undefined) {
    checkPositive(periodMs, 'periodMs');
  }
  const native = new addon.RingBuffer(map.fd, throwingOutside(onRecords), queueLimit, periodMs ?? -1);
  return {
    get lost() {
      return native.lost();
    },
    close: () => native.close(),
  };
}
