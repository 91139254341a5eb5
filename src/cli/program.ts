/** From arguments to an exit code: 0 done, 1 refused or failed with a clear line on stderr, 2 wrong usage. */

import { Command, CommanderError } from 'commander';
import { addGlobalOptions } from './options.js';

export interface ProgramIo {
  readonly out: (text: string) => void;
  readonly err: (text: string) => void;
}

/** Resolves to the exit code: 0 done, 1 refused or failed, 2 wrong usage. */
export async function runProgram(
  args: readonly string[],
  version: string,
  commands: readonly Command[],
  io: ProgramIo,
): Promise<0 | 1 | 2> {
  const program = addGlobalOptions(new Command('nodesentry'))
    .description('catches the traffic of pods, whatever runtime they use, and says whose it is')
    .version(version)
    .exitOverride()
    .configureOutput({ writeOut: io.out, writeErr: io.err })
    .configureHelp({ showGlobalOptions: true })
    .showHelpAfterError('(add --help for what is possible)');
  for (const command of commands) {
    inherit(command, program);
    program.addCommand(command);
  }
  try {
    await program.parseAsync(args, { from: 'user' });
    return 0;
  } catch (error) {
    if (error instanceof CommanderError) {
      return error.exitCode === 0 ? 0 : 2; // commander has said what is wrong
    }
    io.err(`nodesentry: ${messageOf(error)}\n`);
    return 1;
  }
}

/** `addCommand` does not, and commands nest. */
function inherit(command: Command, from: Command): void {
  command.copyInheritedSettings(from);
  for (const child of command.commands) {
    inherit(child, from);
  }
}

function messageOf(error: unknown): string {
  return error instanceof Error ? error.message : String(error);
}
