/** Whether this kernel does the splice right: tried here, as the agent does. */

import type { Config } from '../config/config.js';
import { trySplice } from '../datapath/splice-flaws.js';
import { type Check, type Finding, ok, warn } from './check.js';

/** `objects`: the folder with the compiled objects. Nothing is tried before the check is run. */
export function spliceChecks({ interception }: Pick<Config, 'interception'>, objects: string): Check[] {
  return [{ name: 'splice', run: () => [spliceFinding(interception.splice, () => trySplice(objects))] }];
}

export function spliceFinding(
  mode: Config['interception']['splice'],
  trial: () => ReturnType<typeof trySplice>,
): Finding {
  if (mode === 'disabled') {
    return ok('disabled by the configuration (interception.splice)');
  }
  const { problem, flaws } = trial();
  if (problem !== undefined) {
    return mode === 'auto'
      ? ok(`off: ${problem}`)
      : warn(`off: ${problem}`, 'set interception.splice to auto or disabled, or use another kernel');
  }
  if (flaws.length === 0) {
    return ok('this kernel does all of it right: runc pods have it');
  }
  const wrong = `this kernel would not do all of it right: ${flaws.join(', ')}`;
  return mode === 'auto'
    ? ok(`off, but for pods that ask for it: ${wrong}`)
    : warn(`on for every runc pod, though ${wrong}`, 'set interception.splice to auto; docs/splice.md');
}
