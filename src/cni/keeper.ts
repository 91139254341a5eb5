/** Keeps our plugin in the chain while the agent runs: the primary CNI may write its configuration at any time. */

import { type FSWatcher, statSync, watch } from 'node:fs';
import { join } from 'node:path';
import { type Clock, steadyUnixMs } from '../base/clock.js';
import type { Log } from '../base/log.js';
import { candidates } from './conf-dir.js';
import { howToKeep, PLUGIN_TYPE } from './conflist.js';
import { CniError, reasonOf } from './errors.js';
import { behindLinks, readIfThere } from './files.js';
import { type InstallOptions, type InstallReport, install } from './install.js';

export interface ConflistKeeperOptions extends InstallOptions {
  readonly log: Log;
  /** Between two looks besides watching: watches get lost. Default 1000. */
  readonly lookMs?: number;
  /** As many repairs within 60 s; then the fight with whoever writes the file is left alone for a while. Default 10. */
  readonly maxRepairsPerMinute?: number;
  /** Default one that nobody sets: a rest must not last for days. */
  readonly nowMs?: Clock;
}

/** A rewrite is several events; looked at once they are over. */
const SETTLE_MS = 20;
const MINUTE_MS = 60_000;

export class ConflistKeeper {
  readonly #options: ConflistKeeperOptions;
  readonly #nowMs: Clock;
  #watcher: { readonly handle: FSWatcher; readonly folder: string } | undefined;
  #settling: NodeJS.Timeout | undefined;
  /** What everything looked like when it was last found or made right. */
  #settled: string | undefined;
  #installedOnce = false;
  #repairs = 0;
  #repairTimes: number[] = [];
  #restUntil = 0;
  #problem: string | undefined;
  #file: string | undefined;

  constructor(options: ConflistKeeperOptions) {
    this.#options = options;
    this.#nowMs = options.nowMs ?? steadyUnixMs;
  }

  /** How often the chain, or the binary, was put right again after it had been installed. */
  get repairs(): number {
    return this.#repairs;
  }

  /** Why our plugin may not be in the chain; undefined while it is. */
  get problem(): string | undefined {
    return this.#problem;
  }

  /** The configuration that has our plugin, once there is one. */
  get file(): string | undefined {
    return this.#file;
  }

  /**
   * Installs, and keeps it so until `signal` aborts; what is installed then stays. Where it cannot be installed yet,
   * `problem` says why, and it is tried again at every look: on a node that boots, the primary CNI comes later.
   */
  start(signal: AbortSignal): void {
    if (signal.aborted) {
      return;
    }
    const timer = setInterval(() => this.#look(), this.#options.lookMs ?? 1000);
    signal.addEventListener(
      'abort',
      () => {
        clearInterval(timer);
        clearTimeout(this.#settling);
        this.#watcher?.handle.close();
        this.#watcher = undefined;
      },
      { once: true },
    );
    this.#look();
  }

  #look(): void {
    this.#watch();
    const before = this.#signature();
    if (before === this.#settled) {
      return;
    }
    try {
      if (this.#backsOff()) {
        return;
      }
      const report = install(this.#options);
      this.#installed(report);
      // What install wrote, or somebody else meanwhile, is looked at once more.
      this.#settled = changed(report) ? undefined : before;
      if (changed(report)) {
        this.#soon();
      }
    } catch (error) {
      if (error instanceof CniError && error.code === 'CHANGED_MEANWHILE') {
        this.#soon();
        return;
      }
      this.#fail(reasonOf(error), error);
    }
  }

  #installed(report: InstallReport): void {
    const { log } = this.#options;
    this.#file = report.file;
    if (this.#problem !== undefined) {
      log.info({ file: report.file }, 'cni: the plugin is in the chain, the problem is over');
    }
    this.#problem = undefined;
    if (changed(report)) {
      if (this.#installedOnce) {
        this.#repairs++;
        this.#repairTimes.push(this.#nowMs());
        log.warn({ report, repairs: this.#repairs }, `cni: ${whatWasWrong(report)}, repaired`);
      } else {
        log.info({ report }, 'cni: the plugin was put into the chain');
      }
    }
    this.#installedOnce = true;
  }

  /** Whether another repair now would be part of a fight: something has changed again, whatever it is. */
  #backsOff(): boolean {
    const most = this.#options.maxRepairsPerMinute ?? 10;
    const now = this.#nowMs();
    if (this.#repairTimes.length >= most) {
      this.#restUntil = (this.#repairTimes.at(-1) ?? now) + MINUTE_MS;
      this.#repairTimes = [];
    }
    if (now >= this.#restUntil) {
      this.#repairTimes = this.#repairTimes.filter((time) => time > now - MINUTE_MS);
      return false;
    }
    const what = this.#file ?? this.#options.confDir;
    const cure = this.#cure();
    this.#fail(
      `${what}: another program keeps changing it: repaired ${most} times within a minute, waiting` +
        (cure === undefined ? '' : `; ${cure}`),
    );
    return true;
  }

  #cure(): string | undefined {
    const bytes = this.#file === undefined ? undefined : readIfThere(this.#file);
    return this.#file === undefined || bytes === undefined ? undefined : howToKeep(bytes, this.#file);
  }

  #fail(problem: string, error?: unknown): void {
    if (problem !== this.#problem) {
      this.#problem = problem;
      this.#options.log.error(error === undefined ? {} : { err: error }, `cni: ${problem}`);
    }
  }

  #soon(): void {
    this.#settling ??= setTimeout(() => {
      this.#settling = undefined;
      this.#look();
    }, SETTLE_MS);
  }

  /** The folder may come later, or be replaced by another one. */
  #watch(): void {
    const { confDir } = this.#options;
    const folder = identity(confDir);
    if (this.#watcher?.folder === folder) {
      return;
    }
    this.#watcher?.handle.close();
    this.#watcher = undefined;
    try {
      const handle = watch(confDir, () => this.#soon());
      this.#watcher = { handle, folder };
      handle.on('error', () => {
        handle.close();
        this.#watcher = undefined; // made again at the next look
      });
    } catch {
      // The looks go on without it.
    }
  }

  /** Changes whenever anything does that decides what install would do. */
  #signature(): string {
    const { confDir, binDir, stateDir, plugin } = this.#options;
    let files: string[];
    try {
      files = candidates(confDir).map(({ path }) => `${path} ${stamp(behindLinks(path))}`);
    } catch (error) {
      files = [reasonOf(error)];
    }
    const others = [join(binDir, PLUGIN_TYPE), join(stateDir, 'state.json'), plugin].map(stamp);
    return [...files, ...others].join('\n');
  }
}

function changed(report: InstallReport): boolean {
  return report.change !== 'unchanged' || report.binary.change !== 'unchanged' || report.released.length > 0;
}

function whatWasWrong({ file, change, binary, released }: InstallReport): string {
  if (released.length > 0) {
    return `${file} has become the configuration that is used`;
  }
  if (change === 'unchanged') {
    return `${binary.path} was missing or another one`;
  }
  return `${file} had lost the plugin`;
}

function identity(path: string): string {
  try {
    const { dev, ino } = statSync(path);
    return `${dev} ${ino}`;
  } catch (error) {
    return (error as NodeJS.ErrnoException).code ?? String(error);
  }
}

function stamp(path: string): string {
  try {
    const { dev, ino, size, mtimeNs, ctimeNs } = statSync(path, { bigint: true });
    return [dev, ino, size, mtimeNs, ctimeNs].join(' ');
  } catch (error) {
    return (error as NodeJS.ErrnoException).code ?? String(error);
  }
}
