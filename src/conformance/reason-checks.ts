/** Why there is no answer: each reason that can be had from outside, at each door. */

import { type Check, doorsOf, same } from './check.js';
import type { Asked } from './doors.js';
import { NO_COOKIE, NOBODY, namedByBoth, podsBy, refusedByBoth } from './node-facts.js';

/** With the field that the answer has to name. */
const MALFORMED: readonly (readonly [field: string, asked: Asked])[] = [
  ['proto', { proto: 'sctp', src: `${NOBODY}:1`, dst: `${NOBODY}:2` }],
  ['src', { proto: 'tcp', src: NOBODY, dst: `${NOBODY}:2` }],
  ['dst', { proto: 'tcp', src: `${NOBODY}:1`, dst: `${NOBODY}:65536` }],
  ['src', { proto: 'tcp', src: 'fd00::1:80', dst: `${NOBODY}:2` }],
  ['minAssurance', { proto: 'tcp', src: `${NOBODY}:1`, dst: `${NOBODY}:2`, minAssurance: 'NONE' }],
  ['address', { address: '192.0.2.256', minAssurance: 'IP_ONLY' }],
  ['podUid', { podUid: '' }],
  ['podUid', { podUid: 'x'.repeat(254) }],
  ['minAssurance', { podUid: 'any', minAssurance: 'IP_ONLY' }],
  ['hostInterface', { hostInterface: 'a/b' }],
  ['hostInterface', { hostInterface: 'sixteen-letters-' }],
  ['pid', { pid: '0', startTime: '1' }],
  ['startTime', { pid: '1', startTime: '0' }],
  ['netnsCookie', { netnsCookie: '0' }],
  ['socketCookie', { socketCookie: '0' }],
  ['minEpoch', { podUid: 'any', minEpoch: 'not an epoch', minRevision: '1' }],
  ['waitMs', { podUid: 'any', minEpoch: 'e', minRevision: '1', waitMs: '5001' }],
];

export const REASON_CHECKS: readonly Check[] = [
  {
    id: 'reason.KEY_INVALID',
    says: 'what is malformed is refused as that, by the name of its field',
    run: async (context) => {
      for (const [field, asked] of MALFORMED) {
        for (const door of doorsOf(context)) {
          const what = `${JSON.stringify(asked)} by ${door.name}`;
          same(what, { reason: 'KEY_INVALID', field }, await door.ask(asked));
        }
      }
      for (const door of doorsOf(context)) {
        const { reason } = { reason: 'none', ...(await door.ask({})) };
        same(`no key by ${door.name}`, 'KEY_INVALID', reason);
      }
      return undefined;
    },
  },
  {
    id: 'reason.WORKLOAD_NOT_FOUND',
    says: 'who is of no pod of this node is not found',
    run: async (context) => {
      for (const asked of [
        { address: NOBODY, minAssurance: 'IP_ONLY' },
        { podUid: 'nobody-has-this-uid' },
        { hostInterface: 'nobody-has-it' },
        { socketCookie: NO_COOKIE },
        { proto: 'tcp', src: `${NOBODY}:1`, dst: `${NOBODY}:2` },
      ]) {
        await refusedByBoth(context, asked, 'WORKLOAD_NOT_FOUND');
      }
      return undefined;
    },
  },
  {
    id: 'reason.ASSURANCE_TOO_LOW',
    says: 'an address alone proves nothing to who has not asked for so little',
    run: async (context) => {
      const pods = await podsBy(context, ({ ips }) => ips);
      for (const { pod, key: address } of pods) {
        const src = address.includes(':') ? `[${address}]:1` : `${address}:1`;
        const unrecorded = { proto: 'tcp', src, dst: `${NOBODY}:1` };
        for (const asked of [{ address }, unrecorded]) {
          await refusedByBoth(context, asked, 'ASSURANCE_TOO_LOW');
          const { podUid, assurance } = await namedByBoth(context, { ...asked, minAssurance: 'IP_ONLY' });
          same(JSON.stringify(asked), [pod.uid, 'IP_ONLY'], [podUid, assurance]);
        }
      }
      return pods.length === 0 ? 'no pod of this node has a name' : undefined;
    },
  },
  {
    id: 'reason.NOT_SYNCED',
    says: 'a revision of another agent is never reached',
    run: async (context) => {
      const asked = { podUid: 'any', minEpoch: 'another', minRevision: '1' };
      await refusedByBoth(context, asked, 'NOT_SYNCED');
      return undefined;
    },
  },
  {
    id: 'batch.order',
    says: 'a batch answers each question for itself, in their order',
    run: async (context) => {
      const [found] = await podsBy(context, ({ uid }) => [uid]);
      const asked = [
        { address: NOBODY, minAssurance: 'IP_ONLY' },
        { proto: 'tcp', src: `${NOBODY}:1`, dst: `${NOBODY}:2` },
        ...(found === undefined ? [] : [{ podUid: found.key }]),
        { proto: 'tcp', src: 'nonsense', dst: `${NOBODY}:2` },
        { hostInterface: 'a/b' },
      ];
      const single = await Promise.all(asked.map((one) => context.http.ask(one)));
      for (const door of doorsOf(context)) {
        same(`a batch by ${door.name}`, single, await door.batch(asked));
      }
      return undefined;
    },
  },
  {
    id: 'batch.limit',
    says: '256 questions are answered, one more is refused as a whole',
    run: async (context) => {
      const most = Array.from({ length: 256 }, () => ({ hostInterface: 'a/b' }));
      for (const door of doorsOf(context)) {
        const answers = await door.batch(most);
        same(`256 questions by ${door.name}`, most.length, 'reason' in answers ? answers : answers.length);
        const { reason } = { reason: 'none', ...(await door.batch([...most, { podUid: 'any' }])) };
        same(`257 questions by ${door.name}`, 'KEY_INVALID', reason);
      }
      return undefined;
    },
  },
];
