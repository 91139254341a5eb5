/** The addresses in an answer of DNS, under the name that was asked for. */

import { isIP } from 'node:net';
import { decode, type StringAnswer } from 'dns-packet';
import { plainIp } from './addresses.js';

/** Of the servers whose answers are read. */
export const DNS_PORT = 53;

export interface AnsweredName {
  readonly name: string;
  readonly ip: string;
  readonly ttlSeconds: number;
}

/** Whatever aliases lie in between. Empty for what is no answer, has none, or cannot be read. */
export function namesIn(message: Buffer): AnsweredName[] {
  try {
    const { type, questions = [], answers = [] } = decode(message);
    const [question, ...others] = questions;
    if (type !== 'response' || question === undefined || others.length > 0) {
      return [];
    }
    const name = question.name.toLowerCase();
    const addresses = answers.flatMap((answer) =>
      answer.type === 'A' || answer.type === 'AAAA' ? [(answer as StringAnswer).data] : [],
    );
    // An answer is good for as long as its aliases are.
    const ttlSeconds = Math.min(...answers.map((answer) => ('ttl' in answer ? Number(answer.ttl ?? 0) : 0)));
    // Of what is cut off the library makes words that are no address.
    return addresses.filter((ip) => isIP(ip) !== 0).map((ip) => ({ name, ip: plainIp(ip), ttlSeconds }));
  } catch {
    return [];
  }
}
