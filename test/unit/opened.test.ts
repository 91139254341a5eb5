import { describe, expect, it } from 'vitest';
import { Opened } from '../../src/base/opened.js';

function opened(log: string[], throwing: readonly string[] = []): Opened {
  const all = new Opened();
  for (const name of ['first', 'second', 'third']) {
    const close = () => {
      log.push(name);
      if (throwing.includes(name)) {
        throw new Error(name);
      }
    };
    all.own({ close });
  }
  return all;
}

describe.each([
  { way: 'close', close: (all: Opened) => all.close() },
  { way: 'closeNow', close: async (all: Opened) => all.closeNow() },
])('what was opened, by $way', ({ close }) => {
  it('is closed once, the last first', async () => {
    const log: string[] = [];
    const all = opened(log);
    await close(all);
    await close(all);
    expect(log).toEqual(['third', 'second', 'first']);
  });

  it('is all closed although one of them throws, and what it threw is thrown', async () => {
    const log: string[] = [];
    await expect(close(opened(log, ['second']))).rejects.toThrow(/^second$/);
    expect(log).toEqual(['third', 'second', 'first']);
  });

  it('is all closed although several throw, and none of their errors is lost', async () => {
    const log: string[] = [];
    const failed = close(opened(log, ['first', 'third']));
    await expect(failed).rejects.toMatchObject({
      errors: [expect.objectContaining({ message: 'third' }), expect.objectContaining({ message: 'first' })],
    });
    expect(log).toEqual(['third', 'second', 'first']);
  });
});

it('what closes with a promise is waited for, and the others are closed although it rejects', async () => {
  const log: string[] = [];
  const all = new Opened();
  all.add('kept', () => {
    log.push('kept');
  });
  all.add('slow', async () => {
    await Promise.resolve();
    log.push('slow');
    throw new Error('slow');
  });
  await expect(all.close()).rejects.toThrow('slow');
  expect(log).toEqual(['slow', 'kept']);
});

it('what closes with a promise cannot be closed at once, and that is told', () => {
  const all = new Opened();
  all.add('slow', async () => undefined);
  expect(() => all.closeNow()).toThrow(TypeError);
});
