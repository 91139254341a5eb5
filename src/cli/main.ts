/** The command line, put together. */

import { packageVersion } from '../telemetry/version.js';
import { agentCommand } from './agent.js';
import { apiCheckCommand } from './api-check.js';
import { bugReportCommand } from './bug-report.js';
import { capacityCommand } from './capacity.js';
import { cleanupCommand } from './cleanup.js';
import { cniCommand } from './cni.js';
import { configCommand } from './config.js';
import { doctorCommand } from './doctor.js';
import { drainCommand, resumeCommand } from './drain.js';
import { flowsCommand } from './flows.js';
import { instancesCommand } from './instances.js';
import { podsCommand } from './pods.js';
import { runProgram } from './program.js';
import { proxyCommand } from './proxy.js';
import { resolveCommand } from './resolve.js';
import { statusCommand } from './status.js';
import { superviseCommand } from './supervise.js';
import { webhookCommand } from './webhook.js';

/** Resolves to the exit code. */
export function main(args: readonly string[]): Promise<0 | 1 | 2> {
  // A reader such as head(1) may leave early; that is no failure.
  process.stdout.on('error', (error: NodeJS.ErrnoException) => {
    if (error.code !== 'EPIPE') {
      throw error;
    }
    process.exit(0);
  });
  const commands = [
    agentCommand(),
    superviseCommand(),
    doctorCommand(),
    podsCommand(),
    instancesCommand(),
    drainCommand(),
    resumeCommand(),
    capacityCommand(),
    flowsCommand(),
    resolveCommand(),
    apiCheckCommand(),
    statusCommand(),
    bugReportCommand(),
    cleanupCommand(),
    proxyCommand(),
    cniCommand(),
    configCommand(),
    webhookCommand(),
  ];
  return runProgram(args, packageVersion(), commands, {
    out: (text) => process.stdout.write(text),
    err: (text) => process.stderr.write(text),
  });
}
