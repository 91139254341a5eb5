/** What the agent says of itself: through the command line as people see it, and whole, as it answers at its socket. */

import { request } from 'node:http';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { runCommand } from './command.js';
import { filePart } from './files.js';
import { type Format, type Part, READ_BYTES, type Taken } from './part.js';

/** The same way up from dist/ as from src/. */
const PROGRAM = fileURLToPath(new URL('../../bin/nodesentry', import.meta.url));
const ANSWER_MS = 15_000;
/** Each check has a limit of its own, and together they may take longer than any other command. */
const DOCTOR_MS = 75_000;

const COMMANDS = ['doctor', 'status', 'pods', 'instances', 'flows'] as const;

const QUESTIONS: readonly (readonly [name: string, path: string, format: Format])[] = [
  ['live.json', '/livez', 'json'],
  ['ready.json', '/readyz', 'json'],
  ['status.json', '/v1/status', 'json'],
  ['pods.json', '/v1/workloads', 'json'],
  ['flows.json', '/v1/flows?limit=10000', 'json'],
  ['instances.json', '/v1/instances', 'json'],
  ['services.json', '/v1/services', 'json'],
  ['metrics.txt', '/metrics', 'text'],
];

/** `words`: the global options, which every command is given as well. `pid`: of the agent, where it runs. */
export function agentParts(runDir: string, words: readonly string[], pid: number | undefined): Part[] {
  return [
    ...COMMANDS.map(
      (name): Part => ({
        name: `${name}.txt`,
        from: `nodesentry ${name}`,
        format: 'text',
        take: () =>
          runCommand(process.execPath, [PROGRAM, name, ...words], {
            ...(name === 'doctor' ? { timeoutMs: DOCTOR_MS } : {}),
          }),
      }),
    ),
    ...QUESTIONS.map(
      ([name, path, format]): Part => ({
        name: `api/${name}`,
        from: `GET ${path} at http.sock`,
        format,
        take: () => ask(join(runDir, 'http.sock'), path),
      }),
    ),
    {
      name: 'logs/journal.txt',
      from: 'journalctl -u nodesentry, the newest 100000 lines',
      format: 'text',
      take: journal,
    },
    ...['status', 'limits', 'cgroup', 'net/sockstat'].map(
      (file): Part =>
        pid === undefined
          ? { name: processName(file), from: 'the process of the agent', format: 'text', take: notRunning }
          : filePart(processName(file), `/proc/${pid}/${file}`, 'text'),
    ),
  ];
}

function processName(file: string): string {
  return `process/${file.replace('/', '-')}.txt`;
}

function notRunning(): never {
  throw new Error('no agent is running');
}

async function journal(): Promise<Taken> {
  const elsewhere = 'in Kubernetes the log is what "kubectl logs" prints';
  const words = ['-u', 'nodesentry', '--no-pager', '-o', 'short-iso', '-n', '100000'];
  try {
    const taken = await runCommand('journalctl', words, { keep: 'end' });
    if (!/^-- No entries --$/m.test(taken.text)) {
      return taken;
    }
  } catch (error) {
    throw new Error(`${(error as Error).message}; ${elsewhere}`, { cause: error });
  }
  throw new Error(`the journal has nothing of a unit nodesentry; ${elsewhere}`);
}

function ask(socketPath: string, path: string): Promise<Taken> {
  return new Promise((resolve, reject) => {
    const signal = AbortSignal.timeout(ANSWER_MS);
    const sent = request({ socketPath, path, headers: { 'nodesentry.io': 'true' }, signal }, (response) => {
      const chunks: Buffer[] = [];
      let length = 0;
      response.on('data', (chunk: Buffer) => {
        length += chunk.length;
        if (length > READ_BYTES) {
          sent.destroy(new Error(`left out, more than ${READ_BYTES} bytes`));
        }
        chunks.push(chunk);
      });
      response.once('error', reject);
      response.once('end', () => {
        const { statusCode = 0 } = response;
        const note = statusCode === 200 ? '' : `HTTP status ${statusCode}`;
        resolve({ text: Buffer.concat(chunks).toString(), note });
      });
    });
    sent.once('error', (error: NodeJS.ErrnoException) => {
      const isAway = error.code === 'ENOENT' || error.code === 'ECONNREFUSED';
      reject(isAway ? new Error(`no agent answers at ${socketPath}`) : error);
    });
    sent.end();
  });
}
