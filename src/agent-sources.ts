/** The configured sources, made for `agent.ts`. */

import { join } from 'node:path';
import type { Logger } from 'pino';
import type { Config } from './config/config.js';
import type { PodSource, PodStore } from './pods/pod-store.js';
import { CniSource } from './pods/sources/cni.js';
import { CriSource } from './pods/sources/cri.js';
import { StaticSource } from './pods/sources/static.js';

export type Source = PodSource & { poke?(): void };

export function openSources(config: Config, runDir: string, store: PodStore, log: Logger): Source[] {
  const sources: Source[] = [];
  if (config.sources.static !== undefined) {
    sources.push(
      new StaticSource({ file: config.sources.static.file, store, log: log.child({ part: 'static' }) }),
    );
  }
  if (config.sources.cri !== undefined) {
    sources.push(
      new CriSource({
        endpoint: config.sources.cri.endpoint,
        handlers: config.runtimes.handlers,
        store,
        log: log.child({ part: 'cri' }),
      }),
    );
  }
  if (config.sources.cni !== undefined) {
    sources.push(new CniSource({ directory: join(runDir, 'cni'), store, log: log.child({ part: 'cni' }) }));
  }
  return sources;
}
