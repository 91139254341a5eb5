/**
 * Preloaded into a process (`node --import`): SIGUSR2 starts a CPU profile, the next one ends it and writes it to the path
 * in PROFILE_TO. Only for benchmarks: the processes that this one starts inherit neither.
 */

import { renameSync, writeFileSync } from 'node:fs';
import { Session } from 'node:inspector/promises';

const path = process.env.PROFILE_TO;
delete process.env.NODE_OPTIONS;
delete process.env.PROFILE_TO;

let session;
process.on('SIGUSR2', async () => {
  if (session === undefined) {
    session = new Session();
    session.connect();
    await session.post('Profiler.enable');
    await session.post('Profiler.setSamplingInterval', { interval: 200 });
    await session.post('Profiler.start');
    return;
  }
  const { profile } = await session.post('Profiler.stop');
  session.disconnect();
  session = undefined;
  writeFileSync(`${path}.new`, JSON.stringify(profile));
  renameSync(`${path}.new`, path);
});
