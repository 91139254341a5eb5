import type { Command } from 'commander';
import { ApiClient } from '../api/client.js';
import { globalOptions } from './options.js';

/** Lends a client of the agent that `--run-dir` names, and closes it however `body` ends. */
export async function withAgent<T>(command: Command, body: (client: ApiClient) => Promise<T>): Promise<T> {
  const client = new ApiClient({ runDir: globalOptions(command).runDir });
  try {
    return await body(client);
  } finally {
    await client.close();
  }
}
