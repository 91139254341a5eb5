/** The section `capacity`: what becomes of what the pods say that the node's proxy needs. */

import { z } from 'zod';
import { NOTHING, parseCpu, parseMemory } from '../pods/quantity.js';
import { CAPACITY_MODES, type CapacityConfig } from './config.js';

const whole = (min: number, max: number) => {
  const error = `a whole number from ${min} to ${max}`;
  return z.int({ error }).min(min, { error }).max(max, { error });
};
const name = (error: string) =>
  z.string({ error }).regex(/^[a-z0-9]([a-z0-9.-]{0,251}[a-z0-9])?$/, { error });
const quantity = (parse: (text: string) => number | undefined, expected: string) =>
  z
    .union([z.string(), z.number().transform(String)], { error: expected })
    .transform((text, context): number => {
      const value = parse(text);
      if (value === undefined) {
        context.addIssue({ code: 'custom', message: expected });
        return z.NEVER;
      }
      return value;
    });
const cpu = quantity(parseCpu, 'a quantity of processors such as 100m');
const memory = quantity(parseMemory, 'a quantity of memory such as 64Mi');
const MAPPING = { error: 'a mapping' };

const SELECTOR_EXPECTED = 'a label selector such as app=proxy';

const target = z.strictObject(
  {
    namespace: name('the name of a namespace'),
    selector: z.string({ error: SELECTOR_EXPECTED }).min(1, { error: SELECTOR_EXPECTED }),
    container: name('the name of a container'),
  },
  MAPPING,
);

export const capacity = z
  .strictObject(
    {
      mode: z.enum(CAPACITY_MODES, { error: CAPACITY_MODES.join(' or ') }).default('report'),
      target: target.optional().describe('The container of the proxy’s pod on this node.'),
      base: z
        .strictObject({ cpu: cpu.optional(), memory: memory.optional() }, MAPPING)
        .optional()
        .describe('What it needs without any pod; added.'),
      headroomPercent: whole(0, 1_000)
        .default(20)
        .describe('By so much the limits are above the requests, where the container has limits.'),
      hysteresis: z
        .strictObject(
          { downSeconds: whole(0, 86_400).default(300), percent: whole(0, 100).default(10) },
          MAPPING,
        )
        .prefault({})
        .describe('It is made smaller when it has been too large for so long, and by more than so much.'),
      limit: z
        .strictObject({ cpu: cpu.optional(), memory: memory.optional() }, MAPPING)
        .optional()
        .describe('Nothing is made larger than this.'),
    },
    MAPPING,
  )
  .transform((given, context): CapacityConfig => {
    if (given.mode === 'resize' && given.target === undefined) {
      const message = 'mode resize needs a target';
      context.addIssue({ code: 'custom', message, params: { whole: true } });
    }
    const { base = {}, limit = {} } = given;
    return {
      mode: given.mode,
      target: given.target,
      base: { cpuMillis: base.cpu ?? NOTHING.cpuMillis, memoryBytes: base.memory ?? NOTHING.memoryBytes },
      headroomPercent: given.headroomPercent,
      hysteresis: given.hysteresis,
      limit: { cpuMillis: limit.cpu, memoryBytes: limit.memory },
    };
  });
