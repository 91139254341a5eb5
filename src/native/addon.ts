/** Loading the compiled addons, and the argument checks that both wrappers share. */

import { createRequire } from 'node:module';
import { fileURLToPath } from 'node:url';

const require = createRequire(import.meta.url);

/** `build/Release/<name>.node` beside src/ or dist/. Error with what to do where it cannot be loaded. */
export function loadAddon<T>(name: string): T {
  const path = fileURLToPath(new URL(`../../build/Release/${name}.node`, import.meta.url));
  try {
    return require(path) as T;
  } catch (error) {
    throw new Error(`the native addon ${path} cannot be loaded: run "make build"`, { cause: error });
  }
}

/** TypeError naming `argument` where `value` is no text, is empty, or contains NUL. */
export function checkText(value: unknown, argument: string): asserts value is string {
  if (typeof value !== 'string' || value === '' || value.includes('\0')) {
    throw new TypeError(`${argument} must be a non-empty string without NUL`);
  }
}

/** TypeError naming `argument` where `value` is no whole number from 0 to `max`. */
export function checkUnsigned(value: unknown, argument: string, max = 0x7fffffff): asserts value is number {
  if (typeof value !== 'number' || !Number.isInteger(value) || value < 0 || value > max) {
    throw new TypeError(`${argument} must be a non-negative integer of at most ${max}`);
  }
}

/** TypeError naming `argument` where `value` cannot be a descriptor. */
export function checkFd(value: unknown, argument = 'fd'): asserts value is number {
  checkUnsigned(value, argument);
}

/** TypeError naming `argument` where `value` is no whole number from 1 to `max`. */
export function checkPositive(value: unknown, argument: string, max = 0x7fffffff): asserts value is number {
  if (typeof value !== 'number' || !Number.isInteger(value) || value < 1 || value > max) {
    throw new TypeError(`${argument} must be a positive integer of at most ${max}`);
  }
}

/** TypeError naming `argument` where `value` is no Uint8Array, or not of `length` bytes. */
export function checkBytes(value: unknown, argument: string, length?: number): asserts value is Uint8Array {
  if (!(value instanceof Uint8Array)) {
    throw new TypeError(`${argument} must be a Uint8Array`);
  }
  if (length !== undefined && value.length !== length) {
    throw new TypeError(`${argument} must have ${length} bytes, it has ${value.length}`);
  }
}

/** TypeError naming `argument` where `value` is no function. */
export function checkFunction(
  value: unknown,
  argument: string,
): asserts value is (...args: never[]) => unknown {
  if (typeof value !== 'function') {
    throw new TypeError(`${argument} must be a function`);
  }
}

/** TypeError naming `argument` and the choices where `value` is none of them. */
export function checkOneOf<T extends string>(
  value: unknown,
  argument: string,
  allowed: readonly T[],
): asserts value is T {
  if (!allowed.some((candidate) => candidate === value)) {
    throw new TypeError(`${argument} must be one of ${allowed.join(', ')}`);
  }
}

/**
 * What a callback from an addon's thread throws, Node 20 turns into a mere warning (DEP0168): thrown outside of that
 * call it is an uncaught exception, as from any other callback.
 */
export function throwingOutside<A extends unknown[]>(callback: (...args: A) => void): (...args: A) => void {
  return (...args) => {
    try {
      callback(...args);
    } catch (error) {
      setImmediate(() => {
        throw error;
      });
    }
  };
}
