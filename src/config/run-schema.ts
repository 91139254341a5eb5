/** How an instance is started: the keys `command` and `run`. */

import { z } from 'zod';
import { type InstanceLimits, type InstanceRun, SOCKET_MODES, STOP_SIGNALS } from './config.js';

const MAX_ID = 0xffff_fffe;
const UNIT_BYTES: Readonly<Record<string, number>> = { '': 1, Ki: 2 ** 10, Mi: 2 ** 20, Gi: 2 ** 30 };

const whole = (min: number, max: number) => {
  const error = `a whole number from ${min} to ${max}`;
  return z.int({ error }).min(min, { error }).max(max, { error });
};

const COMMAND_EXPECTED = 'a list of an absolute path and its arguments such as [/usr/sbin/haproxy, -db]';
export const command = z
  .array(z.string({ error: 'an argument in quotes' }), { error: COMMAND_EXPECTED })
  .min(1, { error: COMMAND_EXPECTED })
  .transform((words, context): InstanceRun['command'] => {
    const [path, ...args] = words;
    if (path?.startsWith('/') !== true) {
      context.addIssue({
        code: 'custom',
        message: 'the absolute path of an executable',
        ...(path === undefined ? {} : { path: [0] }),
      });
      return z.NEVER;
    }
    return [path, ...args];
  });

const MEMORY_EXPECTED = 'an amount of memory such as 256Mi';
const memory = z.string({ error: MEMORY_EXPECTED }).transform((text, context): number => {
  const [, digits, unit] = /^([1-9]\d{0,8})(Ki|Mi|Gi|)$/.exec(text) ?? [];
  if (digits === undefined || unit === undefined) {
    context.addIssue({ code: 'custom', message: MEMORY_EXPECTED });
    return z.NEVER;
  }
  return Number(digits) * (UNIT_BYTES[unit] ?? 1);
});

const CPU_EXPECTED = 'a share of processors such as "0.5" or 500m, at least 10m';
const cpu = z
  .union([z.string(), z.number().transform(String)], { error: CPU_EXPECTED })
  .transform((text, context): number => {
    const millis = /^\d{1,7}m$/.test(text)
      ? Number(text.slice(0, -1))
      : /^\d{1,4}(\.\d{1,3})?$/.test(text)
        ? Math.round(Number(text) * 1_000)
        : 0;
    if (millis < 10) {
      context.addIssue({ code: 'custom', message: CPU_EXPECTED });
      return z.NEVER;
    }
    return millis;
  });

const VARIABLES_EXPECTED = 'a mapping of variables to texts';
const FOLDER_EXPECTED = 'the absolute path of a folder';

export const run = z.strictObject(
  {
    environment: z
      .record(
        z.string().regex(/^[A-Za-z_][A-Za-z0-9_]*$/, { error: 'the name of a variable' }),
        z.string({ error: 'a text in quotes' }),
        { error: VARIABLES_EXPECTED },
      )
      .prefault({}),
    directory: z.string({ error: FOLDER_EXPECTED }).regex(/^\//, { error: FOLDER_EXPECTED }).default('/'),
    user: whole(0, MAX_ID).optional(),
    group: whole(0, MAX_ID).optional(),
    sockets: z.enum(SOCKET_MODES, { error: SOCKET_MODES.join(' or ') }).default('handed'),
    graceSeconds: whole(0, 86_400).default(30),
    stopSeconds: whole(0, 3_600).default(10),
    stopSignal: z.enum(STOP_SIGNALS, { error: `one of ${STOP_SIGNALS.join(', ')}` }).default('SIGTERM'),
    limits: z
      .strictObject(
        { memory: memory.optional(), cpu: cpu.optional(), pids: whole(1, 4_194_304).optional() },
        { error: 'a mapping' },
      )
      .prefault({})
      .transform((limits): InstanceLimits => limits),
  },
  { error: 'a mapping' },
);
