import { Command } from 'commander';
import { globalOptions } from './options.js';

export function agentCommand(): Command {
  return new Command('agent')
    .description(
      'run the agent of this node, in the foreground, until SIGTERM; what it put in the kernel stays',
    )
    .action(async (_options: object, command: Command) => {
      // Loads the native addons: only where they are needed.
      const { runAgent } = await import('../agent.js');
      const { config, runDir, bpffs } = globalOptions(command);
      await runAgent({ config, runDir, bpffs });
    });
}
