import { Command } from 'commander';
import { globalOptions } from './options.js';
import { json, type Print, printToStdout } from './output.js';

export function cleanupCommand(print: Print = printToStdout): Command {
  return new Command('cleanup')
    .description(
      'take everything of ours out of the kernel and leave the node as it was found; stop the agent first',
    )
    .option('--json', 'print JSON')
    .action(async (options: { json?: true }, command: Command) => {
      const { runDir, bpffs, procSys, bpfObjects } = globalOptions(command);
      const { lockHolder } = await import('../agent/run-lock.js');
      const holder = lockHolder(runDir);
      if (holder !== undefined) {
        throw new Error(`the agent on ${runDir} (pid ${holder}) is running: stop it first`);
      }
      // Loads the native addons: only where they are needed.
      const { cleanup } = await import('../agent/cleanup.js');
      const report = await cleanup({ runDir, bpffs, procSys, objects: bpfObjects });
      if (options.json) {
        print(json(report));
      } else {
        print(report.removed.map((what) => `removed ${what}`).join('\n') || 'Nothing of ours was found.');
      }
    });
}
