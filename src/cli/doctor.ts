import { resolve } from 'node:path';
import { Command } from 'commander';
import { builtPlugin } from '../cni/plugin.js';
import type { CheckResult } from '../doctor/check.js';
import { globalOptions } from './options.js';
import { json, oneLine, type Print, printToStdout } from './output.js';
import { withAgent } from './with-agent.js';

const LABEL: Readonly<Record<CheckResult['status'], string>> = { ok: 'ok  ', warn: 'warn', fail: 'FAIL' };
/** As `api/cni-server.ts` names it, which would load the native addons. */
const CNI_SOCKET = 'cni.sock';
/** Where no configuration can be read: the places it would name by default. */
const DEFAULT_PLACE = { mark: { value: 0x40, mask: 0x40 }, table: 7340, rulePriority: 90 };

export function doctorCommand(print: Print = printToStdout): Command {
  return new Command('doctor')
    .description('can this node do it, feature by feature, and what is in the way')
    .option('--json', 'print JSON')
    .action(async (options: { json?: true }, command: Command) => {
      const { config: path, bpffs, bpfObjects, runDir } = globalOptions(command);
      // Load the native addons: only where they are needed.
      const { runChecks } = await import('../doctor/check.js');
      const { nodeChecks } = await import('../doctor/node.js');
      const { configurationChecks, readConfig } = await import('../doctor/configuration.js');
      const { kubernetesChecks } = await import('../doctor/kubernetes.js');
      const { capacityChecks } = await import('../doctor/capacity.js');
      const { spliceChecks } = await import('../doctor/splice.js');
      const { cniChecks } = await import('../doctor/cni.js');
      const { neighbourChecks } = await import('../doctor/neighbours.js');
      const { config, check } = readConfig(path);
      const results = await runChecks([
        ...nodeChecks(bpffs, bpfObjects),
        check,
        ...(config === undefined ? [] : configurationChecks(config)),
        ...(config === undefined ? [] : spliceChecks(config, bpfObjects)),
        ...(config === undefined ? [] : kubernetesChecks(config)),
        ...(config === undefined
          ? []
          : capacityChecks(config, () => withAgent(command, (client) => client.capacity()))),
        ...cniChecks(config?.sources.cni, { socket: resolve(runDir, CNI_SOCKET), plugin: builtPlugin() }),
        ...neighbourChecks(config?.interception ?? DEFAULT_PLACE),
      ]);
      print(options.json ? json(results) : report(results));
      const failed = results.filter(({ status }) => status === 'fail').length;
      if (failed > 0) {
        throw new Error(`${failed} of ${results.length} checks failed`);
      }
    });
}

function report(results: readonly CheckResult[]): string {
  const width = Math.max(...results.map(({ name }) => name.length));
  const count = (status: CheckResult['status']): number =>
    results.filter((result) => result.status === status).length;
  const lines = results.flatMap(({ name, status, found, advice }) => [
    `${LABEL[status]}  ${name.padEnd(width)}  ${oneLine(found)}`,
    ...(advice === '' ? [] : [`${' '.repeat(width + 8)}→ ${oneLine(advice)}`]),
  ]);
  return [...lines, '', `${count('ok')} ok, ${count('warn')} to look at, ${count('fail')} failed`].join('\n');
}
