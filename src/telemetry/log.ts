/** The log: JSON lines on stdout. */

import { type DestinationStream, type Logger, pino, stdTimeFunctions } from 'pino';

/** JSON lines on stdout. */
export function createLogger(level: string, destination?: DestinationStream): Logger {
  const options = {
    level,
    base: { pid: process.pid },
    timestamp: stdTimeFunctions.isoTime,
    formatters: { level: (label: string) => ({ level: label }) },
  };
  return destination === undefined ? pino(options) : pino(options, destination);
}
