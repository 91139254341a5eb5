/** Where the CNI plugin was put: what options say, else the configuration, else the usual places of a node. */

import { existsSync } from 'node:fs';
import { resolve } from 'node:path';
import { builtPlugin } from '../cni/plugin.js';
import type { UninstallOptions } from '../cni/uninstall.js';
import { CNI_DEFAULTS, type CniConfig } from '../config/config.js';
import { ConfigError } from '../config/errors.js';
import { loadConfig } from '../config/load.js';

export interface CniPlaceOptions {
  readonly cniConfDir?: string;
  readonly cniBinDir?: string;
  readonly cniStateDir?: string;
}

/** `problem` is why the configuration could not be asked, where options leave something open. */
export function cniPlaces(
  given: CniPlaceOptions,
  config: string,
): { readonly places: UninstallOptions; readonly problem: string | undefined } {
  const { cniConfDir, cniBinDir, cniStateDir } = given;
  const isAsked = [cniConfDir, cniBinDir, cniStateDir].includes(undefined) && existsSync(config);
  const { cni = CNI_DEFAULTS, problem } = isAsked ? configured(config) : {};
  const places = {
    confDir: resolve(cniConfDir ?? cni.confDir),
    binDir: resolve(cniBinDir ?? cni.binDir),
    stateDir: resolve(cniStateDir ?? cni.stateDir),
    plugin: builtPlugin(),
  };
  return { places, problem };
}

function configured(path: string): { readonly cni?: CniConfig | undefined; readonly problem?: string } {
  try {
    return { cni: loadConfig(path).sources.cni };
  } catch (error) {
    if (error instanceof ConfigError) {
      const problem = `${error.message}: so the CNI plugin was looked for in its usual places, or where options say`;
      return { problem };
    }
    throw error;
  }
}
