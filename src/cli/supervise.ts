import { Command } from 'commander';
import { takeLock } from '../agent/run-lock.js';
import { SUPERVISOR } from '../agent/supervision.js';
import { ApiClient } from '../api/client.js';
import type { Log } from '../base/log.js';
import { loadConfig } from '../config/load.js';
import { instancesFolder, Supervisor } from '../supervise/supervisor.js';
import { createLogger } from '../telemetry/log.js';
import { type GlobalOptions, globalOptions } from './options.js';
import { keepMemorySmall } from './small-memory.js';

const ASK_MS = 1_000;

export function superviseCommand(): Command {
  return new Command('supervise')
    .description(
      'start and stop the instances that have a command, apart from the agent (supervision: {by: separate}); they outlive it',
    )
    .action((_options: object, command: Command) => run(globalOptions(command)));
}

/** Until SIGTERM or SIGINT. */
async function run({ config: path, runDir }: GlobalOptions): Promise<void> {
  keepMemorySmall();
  const first = loadConfig(path);
  if (first.supervision.by !== 'separate') {
    throw new Error(`${path}: the agent starts the instances itself: write "supervision: {by: separate}"`);
  }
  const log = createLogger(first.log.level).child({ part: 'supervisor' });
  const folder = instancesFolder(runDir);
  const lock = takeLock(folder, SUPERVISOR);
  const client = new ApiClient({ runDir });
  const told = new Told(log);
  let { instances } = first;
  let wanted: ReadonlySet<string> | undefined;
  const ask = async () => {
    await told.unless('configuration not taken over', () => {
      const { instances: list } = loadConfig(path);
      instances = list;
    });
    await told.unless('the agent does not answer: what runs goes on', async () => {
      wanted = (await servedNow(client)) ?? wanted;
    });
  };
  const supervisor = new Supervisor({
    folder,
    instances: () => instances,
    wanted: () => wanted,
    nowMs: () => performance.now(),
    listening: () => undefined, // the agent looks for listeners all the time
    log,
  });
  try {
    await ask();
    supervisor.start();
    log.info({ runDir }, 'supervisor running');
    await untilStopped(ask);
  } finally {
    supervisor.close();
    await client.close();
    lock.release();
  }
  log.info({}, 'supervisor stopped; the instances go on');
}

/** Names of the instances that have pods; undefined while the agent does not know all of them. */
async function servedNow(client: ApiClient): Promise<ReadonlySet<string> | undefined> {
  const { sources } = await client.status();
  const { instances } = await client.instances();
  return sources.every(({ synced }) => synced)
    ? new Set(instances.filter(({ pods }) => pods.length > 0).map(({ name }) => name))
    : undefined;
}

/** One question after the other. */
function untilStopped(ask: () => Promise<void>): Promise<void> {
  return new Promise((resolve) => {
    let asking: Promise<void> = Promise.resolve();
    const timer = setInterval(() => {
      asking = asking.then(ask);
    }, ASK_MS);
    for (const signal of ['SIGTERM', 'SIGINT'] as const) {
      process.once(signal, () => {
        clearInterval(timer);
        void asking.then(resolve);
      });
    }
  });
}

/** A warning that lasts is given once. */
class Told {
  readonly #log: Pick<Log, 'warn'>;
  readonly #reasons = new Map<string, string>();

  constructor(log: Pick<Log, 'warn'>) {
    this.#log = log;
  }

  async unless(warning: string, step: () => void | Promise<void>): Promise<void> {
    try {
      await step();
      this.#reasons.delete(warning);
    } catch (error) {
      const reason = (error as Error).message;
      if (this.#reasons.get(warning) !== reason) {
        this.#log.warn({ reason }, warning);
      }
      this.#reasons.set(warning, reason);
    }
  }
}
