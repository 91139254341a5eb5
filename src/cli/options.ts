/** The options that every subcommand understands, before or after its name. */

import { fileURLToPath } from 'node:url';
import { type Command, InvalidArgumentError, Option } from 'commander';
import { parseSocketAddress, type SocketAddress } from '../net/socket-address.js';

export interface GlobalOptions {
  readonly runDir: string;
  readonly config: string;
  readonly bpffs: string;
  readonly procSys: string;
  readonly bpfObjects: string;
}

/** build/bpf beside dist/ or src/. */
export const DEFAULT_OBJECTS = fileURLToPath(new URL('../../build/bpf', import.meta.url));

const DEFAULTS: GlobalOptions = {
  runDir: '/run/nodesentry',
  config: '/etc/nodesentry/config.yaml',
  bpffs: '/sys/fs/bpf/nodesentry',
  procSys: '/proc/sys',
  bpfObjects: DEFAULT_OBJECTS,
};

/** Returns the command. */
export function addGlobalOptions(program: Command): Command {
  return program
    .option('--run-dir <dir>', 'where the agent keeps its sockets', DEFAULTS.runDir)
    .option('--config <file>', 'the configuration', DEFAULTS.config)
    .option('--bpffs <dir>', 'where the agent pins its BPF programs and maps', DEFAULTS.bpffs)
    .addOption(
      new Option('--proc-sys <dir>', 'where sysctls can be written: in a container /proc/sys is read-only')
        .env('NODESENTRY_PROC_SYS')
        .default(DEFAULTS.procSys),
    )
    .addOption(
      new Option('--bpf-objects <dir>', 'where the compiled BPF objects are: for packagers and tests')
        .env('NODESENTRY_BPF_OBJECTS')
        .default(DEFAULTS.bpfObjects)
        .hideHelp(),
    );
}

/** With their defaults. */
export function globalOptions(command: Command): GlobalOptions {
  return { ...DEFAULTS, ...command.optsWithGlobals<Partial<GlobalOptions>>() };
}

/** A parser for commander: a whole number within the bounds, else a usage error. */
export function wholeNumber(min: number, max: number): (text: string) => number {
  return (text) => {
    const value = /^\d{1,15}$/.test(text) ? Number(text) : Number.NaN;
    if (!(value >= min && value <= max)) {
      throw new InvalidArgumentError(`expected a whole number from ${min} to ${max}.`);
    }
    return value;
  };
}

/** A parser for commander: an address with a port that is not 0. */
export function socketAddress(text: string): SocketAddress {
  const address = parseSocketAddress(text);
  if (address === undefined || address.port === 0) {
    throw new InvalidArgumentError(
      'expected an address and port such as 10.66.0.3:41886 or [fd00::3]:41886.',
    );
  }
  return address;
}

/** A parser for commander: `30s`, `5m`, `1h`, or seconds alone, as seconds. */
export function seconds(text: string): number {
  const [, count, unit = 's'] = /^(\d{1,6})([smh])?$/.exec(text) ?? [];
  if (count === undefined) {
    throw new InvalidArgumentError('expected a time such as 30s, 5m or 1h.');
  }
  return Number(count) * { s: 1, m: 60, h: 3_600 }[unit as 's' | 'm' | 'h'];
}
