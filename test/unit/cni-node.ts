/** Folders of a node as far as CNI goes: configurations, plugins, our state. */

import { mkdirSync, mkdtempSync, readdirSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import type { InstallOptions } from '../../src/cni/install.js';
import { PLUGIN } from './cni-plugin-lab.js';

export const CALICO = `{
  "name": "k8s-pod-network",
  "cniVersion": "1.0.0",
  "x-big": 12345678901234567890123, "x-float": 1.0,
  "x-twice": 1, "x-twice": 2,
  "plugins": [
    {
      "type": "calico",
      "mtu": 1.440e3,
      "ipam": {"type": "calico-ipam", "note": "süß \\u00e9 ] } \\" , é"}
    },
    {
      "type": "portmap", "snat": true, "capabilities": {"portMappings": true}
    }
  ]
}
`;

/** As cilium-agent writes it, with cni.exclusive after each edit of somebody else. */
export const CILIUM = `{
  "cniVersion": "0.3.1",
  "name": "cilium",
  "plugins": [{"type": "cilium-cni", "enable-debug": false, "log-file": "/var/run/cilium/cilium-cni.log"}]
}
`;

export const PLAIN = '{"cniVersion": "0.4.0", "name": "lonely", "type": "bridge", "n": 1.0}\n';

export class CniNode {
  readonly root = mkdtempSync(join(tmpdir(), 'nodesentry-cni-node-'));
  readonly confDir = join(this.root, 'net.d');
  readonly binDir = join(this.root, 'bin');
  readonly stateDir = join(this.root, 'state');

  constructor() {
    mkdirSync(this.confDir);
  }

  get options(): InstallOptions {
    const { confDir, binDir, stateDir } = this;
    const socket = '/run/nodesentry/cni.sock';
    return { confDir, binDir, stateDir, plugin: PLUGIN, socket, failure: 'closed', timeoutMs: 10_000 };
  }

  path(name: string): string {
    return join(this.confDir, name);
  }

  write(name: string, text: string | Buffer): void {
    writeFileSync(this.path(name), text);
  }

  read(name: string): string {
    return readFileSync(this.path(name), 'utf8');
  }

  names(): string[] {
    return readdirSync(this.confDir).sort();
  }

  /** Types of the plugins in a chain. */
  chain(name: string): string[] {
    const { plugins } = JSON.parse(this.read(name)) as { plugins: { type: string }[] };
    return plugins.map(({ type }) => type);
  }

  close(): void {
    rmSync(this.root, { recursive: true, force: true });
  }
}
