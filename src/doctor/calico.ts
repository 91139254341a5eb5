/**
 * Calico sends what pods address to the node, and with it what we deliver there, through its chain cali-wl-to-host: the
 * pod's egress policy first, then DefaultEndpointToHostAction, which is Drop unless somebody has set it.
 */

import type { IptablesTable } from './rulesets.js';

const CHAIN = 'cali-wl-to-host';

/** Tables in which intercepted packets end, such as `iptables filter cali-wl-to-host`. */
export function endpointToHostDrops(tables: readonly IptablesTable[]): string[] {
  return tables
    .filter(({ rules }) => rules.some(({ chain, words }) => chain === CHAIN && dropsAll(words)))
    .map(({ command, name }) => `${command} ${name} ${CHAIN}`);
}

/** A rule with a comment at most, and no condition. */
function dropsAll(words: readonly string[]): boolean {
  for (let index = 0; index < words.length; index += 2) {
    const [option = '', value = ''] = words.slice(index);
    if (option === '-j') {
      return value === 'DROP' || value === 'REJECT';
    }
    if (option !== '--comment' && !(option === '-m' && value === 'comment')) {
      return false;
    }
  }
  return false;
}
