import { spawn } from 'node:child_process';
import { once } from 'node:events';
import { basename } from 'node:path';
import { expect, test } from 'vitest';
import { processName } from '../../src/datapath/proxy-sockets.js';

test.each([
  ['its own name', 'haproxy', 'haproxy'],
  ['that of the executable where Node 24 has called it MainThread', 'MainThread', basename(process.execPath)],
])('a process is told by %s', async (_, title, expected) => {
  const script = 'process.title = process.argv[1]; console.log(); process.stdin.resume()';
  const child = spawn(process.execPath, ['-e', script, title], { stdio: ['pipe', 'pipe', 'inherit'] });
  try {
    await once(child.stdout, 'data');
    expect(processName(child.pid ?? 0)).toBe(expected);
  } finally {
    child.kill();
    await once(child, 'exit');
  }
  expect(processName(child.pid ?? 0)).toBe('unknown');
});
