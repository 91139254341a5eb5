/** The command line, put together. */

import type { Command } from 'commander';
import { packageVersion } from '../telemetry/version.js';
import { runProgram } from './program.js';

/** In the order of the help. Each is loaded when it is called: the agent would keep what the others need in memory. */
const COMMANDS: Readonly<Record<string, () => Promise<Command>>> = {
  agent: async () => (await import('./agent.js')).agentCommand(),
  supervise: async () => (await import('./supervise.js')).superviseCommand(),
  doctor: async () => (await import('./doctor.js')).doctorCommand(),
  pods: async () => (await import('./pods.js')).podsCommand(),
  instances: async () => (await import('./instances.js')).instancesCommand(),
  drain: async () => (await import('./drain.js')).drainCommand(),
  resume: async () => (await import('./drain.js')).resumeCommand(),
  capacity: async () => (await import('./capacity.js')).capacityCommand(),
  flows: async () => (await import('./flows.js')).flowsCommand(),
  resolve: async () => (await import('./resolve.js')).resolveCommand(),
  explain: async () => (await import('./explain.js')).explainCommand(),
  rehearse: async () => (await import('./rehearse.js')).rehearseCommand(),
  'api-check': async () => (await import('./api-check.js')).apiCheckCommand(),
  status: async () => (await import('./status.js')).statusCommand(),
  'bug-report': async () => (await import('./bug-report.js')).bugReportCommand(),
  cleanup: async () => (await import('./cleanup.js')).cleanupCommand(),
  proxy: async () => (await import('./proxy.js')).proxyCommand(),
  cni: async () => (await import('./cni.js')).cniCommand(),
  config: async () => (await import('./config.js')).configCommand(),
  webhook: async () => (await import('./webhook.js')).webhookCommand(),
};

/** Resolves to the exit code. */
export async function main(args: readonly string[]): Promise<0 | 1 | 2> {
  // A reader such as head(1) may leave early; that is no failure.
  process.stdout.on('error', (error: NodeJS.ErrnoException) => {
    if (error.code !== 'EPIPE') {
      throw error;
    }
    process.exit(0);
  });
  return runProgram(args, packageVersion(), await commandsFor(args), {
    out: (text) => process.stdout.write(text),
    err: (text) => process.stderr.write(text),
  });
}

/** Those whose names are among the arguments, be they meant as such or as an option's value; of none of them, all. */
function commandsFor(args: readonly string[]): Promise<Command[]> {
  const all = Object.entries(COMMANDS);
  const named = all.filter(([name]) => args.includes(name));
  return Promise.all((named.length === 0 ? all : named).map(([, load]) => load()));
}
