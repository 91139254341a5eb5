import { Command } from 'commander';
import { type CniPlaceOptions, cniPlaces } from './cni-places.js';
import { globalOptions } from './options.js';
import { json, type Print, printToStdout } from './output.js';

export function cleanupCommand(print: Print = printToStdout): Command {
  return new Command('cleanup')
    .description(
      'take the CNI plugin out of the chain, everything of ours out of the kernel, and leave the node as it was found; stop the agent first',
    )
    .option('--cni-conf-dir <dir>', 'where the CNI plugin was installed (default: as the configuration says)')
    .option('--cni-bin-dir <dir>', 'where its binary is')
    .option('--cni-state-dir <dir>', 'where the originals are kept')
    .option('--json', 'print JSON')
    .action(async (options: CniPlaceOptions & { json?: true }, command: Command) => {
      const { runDir, bpffs, procSys, bpfObjects, config } = globalOptions(command);
      const { lockHolder } = await import('../agent/run-lock.js');
      const holder = lockHolder(runDir);
      if (holder !== undefined) {
        throw new Error(`the agent on ${runDir} (pid ${holder}) is running: stop it first`);
      }
      const { places, problem } = cniPlaces(options, config);
      // Loads the native addons: only where they are needed.
      const { cleanup } = await import('../agent/cleanup.js');
      const report = await cleanup({ runDir, bpffs, procSys, objects: bpfObjects, cni: places });
      const problems = [...(problem === undefined ? [] : [problem]), ...report.problems];
      if (options.json) {
        print(json({ ...report, problems }));
      } else {
        print(report.removed.map((what) => `removed ${what}`).join('\n') || 'Nothing of ours was found.');
      }
      if (problems.length > 0) {
        throw new Error(problems.join('; '));
      }
    });
}
