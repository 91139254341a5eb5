/** What an announcement says, checked field by field. */

import { z } from 'zod';
import { parseListenerAddress } from '../config/listeners.js';
import type { WantedListener } from '../datapath/listener-slots.js';
import { InstanceError } from './errors.js';

export type Direction = 'outbound' | 'inbound';
export const DIRECTIONS = ['outbound', 'inbound'] as const;

export type OfDirections<T> = Readonly<Record<Direction, readonly T[]>>;

export interface DescriptorAnnouncement extends OfDirections<number> {
  readonly instance: string;
  readonly replace: boolean;
}

export interface ProcessAnnouncement extends OfDirections<WantedListener> {
  readonly pid: number;
  readonly replace: boolean;
}

const MOST = 4;

const replace = z.boolean({ error: 'true or false' }).default(false);
const INDEXES_EXPECTED = `at most ${MOST} indexes of descriptors`;
const indexes = z
  .array(z.int({ error: 'the index of a descriptor' }).min(0, { error: 'the index of a descriptor' }), {
    error: INDEXES_EXPECTED,
  })
  .max(MOST, { error: INDEXES_EXPECTED })
  .default([]);
const message = z.strictObject(
  { instance: z.string({ error: 'the name of an instance' }), outbound: indexes, inbound: indexes, replace },
  { error: (issue) => (issue.code === 'unrecognized_keys' ? undefined : 'an object') },
);

const ADDRESSES_EXPECTED = `an address and a port such as 127.0.0.1:16001, or a list of 1 to ${MOST}`;
const addresses = z
  .union([z.string(), z.array(z.string()).min(1).max(MOST)], { error: ADDRESSES_EXPECTED })
  .transform((given, context) => {
    const texts = typeof given === 'string' ? [given] : given;
    const found = texts.flatMap((text) => parseListenerAddress(text) ?? []);
    if (found.length < texts.length) {
      context.addIssue({ code: 'custom', message: ADDRESSES_EXPECTED });
    }
    return found;
  })
  .optional();
const PID_EXPECTED = 'the number of a process';
const request = z.strictObject(
  {
    pid: z
      .int({ error: PID_EXPECTED })
      .min(1, { error: PID_EXPECTED })
      .max(0x3fffff, { error: PID_EXPECTED }),
    outbound: addresses,
    inbound: addresses,
    replace,
  },
  { error: (issue) => (issue.code === 'unrecognized_keys' ? undefined : 'an object') },
);

/** `text`: JSON; `descriptors`: how many came along. Throws InstanceError KEY_INVALID, which names the field. */
export function parseDescriptorAnnouncement(text: string, descriptors: number): DescriptorAnnouncement {
  const found = checked(message, jsonOf(text));
  checkAny(found);
  const seen = new Set<number>();
  for (const direction of DIRECTIONS) {
    for (const [place, index] of found[direction].entries()) {
      if (index >= descriptors) {
        throw invalid(`${direction}[${place}]: there is no descriptor ${index}, ${descriptors} came along`);
      }
      if (seen.has(index)) {
        throw invalid(`${direction}[${place}]: descriptor ${index} is named twice`);
      }
      seen.add(index);
    }
  }
  return found;
}

/** Throws InstanceError KEY_INVALID, which names the field. */
export function parseProcessAnnouncement(body: unknown): ProcessAnnouncement {
  const { outbound = [], inbound = [], ...rest } = checked(request, body);
  checkAny({ outbound, inbound });
  return { outbound, inbound, ...rest };
}

function checkAny({ outbound, inbound }: OfDirections<unknown>): void {
  if (outbound.length + inbound.length === 0) {
    throw invalid('at least one of outbound and inbound is needed');
  }
}

function jsonOf(text: string): unknown {
  try {
    return JSON.parse(text);
  } catch {
    throw invalid('the message is not JSON');
  }
}

function checked<T>(schema: z.ZodType<T>, given: unknown): T {
  const { data, error } = schema.safeParse(given);
  const [issue] = error?.issues ?? [];
  if (issue === undefined) {
    return data as T;
  }
  const place = issue.path.length === 0 ? 'the request' : issue.path.join('.');
  throw invalid(
    issue.code === 'unrecognized_keys'
      ? `${issue.keys[0]?.slice(0, 100)}: there is no such field`
      : `${place}: expected ${issue.message}`,
  );
}

function invalid(why: string): InstanceError {
  return new InstanceError('KEY_INVALID', why);
}
