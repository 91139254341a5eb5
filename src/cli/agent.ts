import { Command, InvalidArgumentError, Option } from 'commander';
import { NODE_EXPECTED, NODE_NAME } from '../config/schema.js';
import { globalOptions } from './options.js';
import { keepMemorySmall } from './small-memory.js';

interface AgentCommandOptions {
  readonly nodeName?: string;
  readonly mountBpffs: boolean;
}

export function agentCommand(): Command {
  return new Command('agent')
    .description(
      'run the agent of this node, in the foreground, until SIGTERM; what it put in the kernel stays',
    )
    .addOption(
      new Option('--node-name <name>', 'the default of "node" in the configuration, instead of the hostname')
        .env('NODESENTRY_NODE')
        .argParser(nodeName),
    )
    .option(
      '--no-mount-bpffs',
      'where bpffs is not mounted, refuse to start: for containers, whose mounts end',
    )
    .action(async (options: AgentCommandOptions, command: Command) => {
      keepMemorySmall();
      // Loads the native addons: only where they are needed.
      const { runAgent } = await import('../agent/agent.js');
      await runAgent({ ...globalOptions(command), ...options });
    });
}

function nodeName(text: string): string {
  if (!NODE_NAME.test(text)) {
    throw new InvalidArgumentError(`expected ${NODE_EXPECTED}.`);
  }
  return text;
}
