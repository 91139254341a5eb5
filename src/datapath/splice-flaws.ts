/** What this kernel gets wrong with sockets whose queue another socket fills: tried, not taken from its version. */

import { Opened } from '../base/opened.js';
import { openObjectFile } from '../kernel/pins.js';
import { spliceFlaws } from '../native/bpf.js';
import { isKernelError } from '../native/errors.js';

/** Without these nobody is spliced, whoever asks for it. */
const FATAL: Readonly<Record<string, string>> = {
  redirect: 'on this kernel nothing arrives',
  memory: 'this kernel does not tell what waits in a socket, so a slow reader would have no bound',
};

/** By the trial's name: what an application would notice, if it is one of the few that do this. */
const FLAWS: Readonly<Record<string, string>> = {
  peek: 'MSG_PEEK takes the bytes away',
  FIONREAD: 'FIONREAD does not count what waits',
  splice: 'splice(2) does not see what waits',
  MSG_WAITALL: 'MSG_WAITALL returns too early',
  MSG_OOB: 'urgent data (MSG_OOB) is not told',
  blocking: 'a recv(2) that blocks may end with EAGAIN',
};

export interface SpliceTrial {
  /** Why nothing can be spliced on this kernel; undefined where it can. */
  readonly problem: string | undefined;
  /** In words; empty where the kernel gets all right. */
  readonly flaws: readonly string[];
}

/** Takes some 100 ms, on the loopback interface. `objects`: the folder with the compiled objects. */
export function trySplice(objects: string): SpliceTrial {
  try {
    const names = flawsFound(objects);
    return {
      problem: names.map((name) => FATAL[name]).find((text) => text !== undefined),
      flaws: names.filter((name) => !(name in FATAL)).map((name) => FLAWS[name] ?? name),
    };
  } catch (error) {
    if (isKernelError(error)) {
      return { problem: `it could not be tried (${error.message.split('\n', 1)[0]})`, flaws: [] };
    }
    throw error;
  }
}

function flawsFound(objects: string): string[] {
  const opened = new Opened();
  try {
    const object = opened.own(openObjectFile(objects, 'splice-trial'));
    object.load();
    return spliceFlaws(opened.own(object.program('splice_trial')), opened.own(object.map('trial_sockets')));
  } finally {
    opened.closeNow();
  }
}
