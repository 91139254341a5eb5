import { resolve } from 'node:path';
import { Command, Option } from 'commander';
import { type InstallReport, install } from '../cni/install.js';
import { builtPlugin } from '../cni/plugin.js';
import type { Restored } from '../cni/restore.js';
import { type UninstallReport, uninstall } from '../cni/uninstall.js';
import { CNI_DEFAULTS } from '../config/config.js';
import { globalOptions, wholeNumber } from './options.js';
import { json, type Print, printToStdout } from './output.js';

interface Places {
  readonly confDir: string;
  readonly binDir: string;
  readonly stateDir: string;
  readonly json?: true;
}

interface InstallArguments extends Places {
  readonly socket?: string;
  readonly failure: 'closed' | 'open';
  readonly timeoutMs: number;
}

export function cniCommand(print: Print = printToStdout): Command {
  const command = new Command('cni').description('the chained CNI plugin of this node');
  withPlaces(command.command('install'))
    .description('copy the plugin and put it last into the chain that the container runtime uses')
    .option('--socket <path>', "the agent's socket (default: cni.sock in --run-dir)")
    .addOption(
      new Option('--failure <policy>', 'what starting a pod ends in while the agent is away')
        .choices(['closed', 'open'])
        .default('closed'),
    )
    .option('--timeout-ms <n>', 'how long a pod waits for the agent', wholeNumber(1, 600_000), 10_000)
    .action((options: InstallArguments, child: Command) => {
      const { runDir } = globalOptions(child);
      const { failure, timeoutMs } = options;
      const socket = options.socket ?? resolve(runDir, 'cni.sock');
      const report = install({ ...placesOf(options), socket: resolve(socket), failure, timeoutMs });
      print(options.json ? json(report) : describeInstall(report));
    });
  withPlaces(command.command('uninstall'))
    .description('take the plugin out of the chain and off the node; what was there before comes back')
    .action(async (options: Places, child: Command) => {
      const report = uninstall(placesOf(options));
      print(options.json ? json(report) : describeUninstall(report));
      const { runDir } = globalOptions(child);
      const { lockHolder } = await import('../agent/run-lock.js');
      const holder = lockHolder(runDir);
      if (holder !== undefined && !options.json) {
        print(`The agent (pid ${holder}) is running: with sources.cni.install it puts the plugin back.`);
      }
    });
  return command;
}

function withPlaces(command: Command): Command {
  return command
    .option('--conf-dir <dir>', 'where the runtime looks for network configurations', CNI_DEFAULTS.confDir)
    .option('--bin-dir <dir>', 'where the runtime looks for plugins', CNI_DEFAULTS.binDir)
    .option('--state-dir <dir>', 'where the originals are kept', CNI_DEFAULTS.stateDir)
    .option('--json', 'print JSON');
}

function placesOf({ confDir, binDir, stateDir }: Places) {
  return {
    confDir: resolve(confDir),
    binDir: resolve(binDir),
    stateDir: resolve(stateDir),
    plugin: builtPlugin(),
  };
}

function describeInstall({ file, change, source, binary, released }: InstallReport): string {
  const chain = {
    added: `${file}: nodesentry-cni is in the chain`,
    derived: `${file}: made from ${source ?? ''}, which has no chain and stays as it is; the runtime now uses this one`,
    unchanged: `${file}: nodesentry-cni was in the chain already, nothing changed`,
  }[change];
  const copied = binary.change === 'copied' ? [`${binary.path}: copied`] : [];
  return [...copied, chain, ...released.map(describeRestored)].join('\n');
}

function describeUninstall({ files, binary }: UninstallReport): string {
  const lines = files.filter(({ change }) => change !== 'gone').map(describeRestored);
  if (binary.change === 'removed') {
    lines.push(`${binary.path}: removed`);
  }
  if (binary.change === 'kept') {
    lines.push(`${binary.path}: left, it is not the one that was installed`);
  }
  return lines.length === 0 ? 'The CNI plugin is not installed.' : lines.join('\n');
}

function describeRestored({ path, change }: Restored): string {
  const what = {
    restored: 'as it was before, byte for byte',
    removed: 'removed, it was made by the installation',
    'entry-removed': 'rewritten by another program since; nodesentry-cni was taken out of it',
    left: 'left, nodesentry-cni is not in it',
    gone: 'is gone',
  }[change];
  return `${path}: ${what}`;
}
