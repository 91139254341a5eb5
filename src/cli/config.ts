import { Command } from 'commander';
import { loadConfig } from '../config/load.js';
import { configJsonSchema } from '../config/schema.js';
import { globalOptions } from './options.js';
import { json, type Print, printToStdout } from './output.js';

export function configCommand(print: Print = printToStdout): Command {
  const command = new Command('config').description('the configuration file');
  command
    .command('schema')
    .description('print the JSON Schema of the configuration, for editors')
    .option('--json', 'print JSON (it always is)')
    .action(() => print(json(configJsonSchema())));
  command
    .command('check')
    .description('check the file that --config names; every mistake is told with its line')
    .option('--json', 'print the complete configuration, defaults filled in, as JSON')
    .action((options: { json?: true }, check: Command) => {
      const path = globalOptions(check).config;
      const config = loadConfig(path);
      print(options.json ? json(config) : `${path}: ok`);
    });
  return command;
}
