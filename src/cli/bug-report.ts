import { accessSync, constants, createWriteStream, existsSync, rmSync } from 'node:fs';
import { dirname, resolve } from 'node:path';
import { Command } from 'commander';
import type { Member, Missing } from '../bug-report/collect.js';
import { packageVersion } from '../telemetry/version.js';
import { type GlobalOptions, globalOptions } from './options.js';
import { oneLine, type Print, padded, printToStdout } from './output.js';

const WIDTHS = [32, 9, 0];
const TO_STDOUT = '-';

export function bugReportCommand(print: Print = printToStdout): Command {
  return new Command('bug-report')
    .description('one archive of all that helps to find out what is wrong on this node, secrets taken out')
    .option(
      '-o, --output <file>',
      'where to, - for stdout; an existing file is left alone (default: nodesentry-bug-report-<node>-<time>.tar.gz)',
    )
    .action(async (options: { output?: string }, command: Command) => {
      const globals = globalOptions(command);
      // Load the native addons: only where they are needed.
      const { readConfig } = await import('../doctor/configuration.js');
      const { lockHolder } = await import('../agent/run-lock.js');
      const { agentParts } = await import('../bug-report/agent-parts.js');
      const { kernelCommands } = await import('../bug-report/kernel-commands.js');
      const { attachedInterfaces, kernelView } = await import('../bug-report/kernel-view.js');
      const { nodeParts, secretsOf } = await import('../bug-report/node-parts.js');
      const { collect } = await import('../bug-report/collect.js');
      const { writeArchive } = await import('../bug-report/archive.js');
      const { ownNodeName } = await import('../config/load.js');

      const takenAt = new Date();
      const { config } = readConfig(globals.config);
      const node = config?.node ?? ownNodeName();
      const folder = `nodesentry-bug-report-${node}-${stamp(takenAt)}`.replaceAll(/[^\w.-]/g, '-');
      const output = options.output ?? `${folder}.tar.gz`;
      refuseOutput(output);
      const tell: Print = output === TO_STDOUT ? (text) => process.stderr.write(`${text}\n`) : print;

      const { runDir, bpffs, procSys, bpfObjects } = globals;
      const places = { path: globals.config, config, runDir, bpffs, bpfObjects };
      const attached = async () => (await attachedInterfaces(bpffs)).map(({ name }) => name);
      const parts = [
        ...agentParts(runDir, words(globals), lockHolder(runDir)),
        ...kernelView(bpffs, procSys),
        ...kernelCommands(attached),
        ...nodeParts(places),
      ];
      tell(padded(['NAME', 'BYTES', 'FROM'], WIDTHS));
      const collected = await collect(parts, secretsOf(places), (entry) => tell(row(entry)));
      const heading = { folder, node, version: packageVersion(), takenAt };
      if (output === TO_STDOUT) {
        await writeArchive(heading, collected, process.stdout, false);
        return;
      }
      const file = createWriteStream(output, { flags: 'wx', mode: 0o600 });
      try {
        await writeArchive(heading, collected, file, true);
      } catch (error) {
        if ((error as NodeJS.ErrnoException).code !== 'EEXIST') {
          rmSync(output, { force: true });
        }
        throw error;
      }
      tell(`\n${output}: pods, addresses and labels are in it. Look it through before you pass it on.`);
    });
}

/** Before anything is collected: what cannot be written is not worth waiting for. */
function refuseOutput(output: string): void {
  if (output === TO_STDOUT) {
    if (process.stdout.isTTY) {
      throw new Error('an archive is nothing for a terminal: add "> report.tar.gz"');
    }
    return;
  }
  if (existsSync(output)) {
    throw new Error(`${output} exists: name another file by --output`);
  }
  const folder = dirname(resolve(output));
  try {
    accessSync(folder, constants.W_OK);
  } catch (error) {
    const hint = 'name a file by --output, or use "--output - > report.tar.gz"';
    throw new Error(`${folder} cannot be written to: ${hint}`, { cause: error });
  }
}

/** As in 20261128T191857Z. */
function stamp(at: Date): string {
  return at.toISOString().replaceAll(/[-:]|\.\d+/g, '');
}

function words({ runDir, config, bpffs, procSys, bpfObjects }: GlobalOptions): string[] {
  return [
    ...['--run-dir', runDir, '--config', config, '--bpffs', bpffs],
    ...['--proc-sys', procSys, '--bpf-objects', bpfObjects],
  ];
}

function row(entry: Member | Missing): string {
  const cells =
    'why' in entry
      ? [entry.name, 'missing', `${entry.from}: ${entry.why}`]
      : [
          entry.name,
          String(entry.bytes.length),
          [entry.from, entry.note].filter((text) => text !== '').join(': '),
        ];
  return padded(cells.map(oneLine), WIDTHS);
}
