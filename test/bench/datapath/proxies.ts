/** The proxies, each with one worker and as a proxy of bytes, on a lab's node. */

import { writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { type Daemon, runIn, waitFor } from '../../lab/exec.js';
import { type Lab, REMOTE } from '../../lab/lab.js';

export type ProxyName = 'HAProxy' | 'Envoy';

export const ENVOY = join(import.meta.dirname, '../../../.cache/bin/envoy');

/** Where the server is, and at which ports; several, that there are ports enough for short connections. */
export const SERVER = { ip: REMOTE[4], ports: [8000, 8001, 8002, 8003, 8004, 8005, 8006, 8007] } as const;

/** The address of the node at which the explicit proxy listens, port by port as the server does. */
export const EXPLICIT = '10.199.0.1';

/** Where intercepted connections arrive. */
export const OUTBOUND = { ip: '127.0.0.1', port: 15_001 } as const;

/** How a proxy gets its connections. */
export type Listening =
  /** Dialled itself, and told where to dial on. */
  | { readonly kind: 'explicit' }
  /** As it would for anybody: NodeSentry adopts the socket. */
  | { readonly kind: 'adopted' }
  /** With IP_TRANSPARENT of its own accord, as TPROXY wants it. */
  | { readonly kind: 'transparent' }
  /** In the pod's network namespace, of this name below /run/netns. */
  | { readonly kind: 'inside'; readonly netns: string };

interface Bind {
  /** HAProxy's words. */
  readonly haproxy: string;
  /** Where to: told, or the address that was dialled. */
  readonly to: 'server' | 'dialled';
}

function bindOf(listening: Listening): Bind {
  const outbound = `${OUTBOUND.ip}:${OUTBOUND.port}`;
  switch (listening.kind) {
    case 'explicit':
      return { haproxy: `${EXPLICIT}:${SERVER.ports[0]}-${SERVER.ports.at(-1)}`, to: 'server' };
    case 'adopted':
      return { haproxy: outbound, to: 'dialled' };
    case 'transparent':
      return { haproxy: `${outbound} transparent`, to: 'dialled' };
    case 'inside':
      return { haproxy: `${outbound} namespace ${listening.netns}`, to: 'dialled' };
  }
}

function haproxyConfig(listening: Listening): string {
  const { haproxy, to } = bindOf(listening);
  const namespaces = listening.kind === 'inside' ? `namespace_list\n  namespace ${listening.netns}\n` : '';
  return `global
  nbthread 1
  maxconn 9000
${namespaces}defaults
  mode tcp
  timeout connect 5s
  timeout client 1h
  timeout server 1h
frontend out
  bind ${haproxy}
  default_backend far
backend far
  server far ${to === 'server' ? SERVER.ip : '*:0'}
`;
}

const API = 'type.googleapis.com/envoy.extensions.filters';

/** An address at which Envoy listens, and the cluster to which it dials on. */
function envoyListener(listening: Listening, ip: string, port: number, cluster: string): object {
  const namespace =
    listening.kind === 'inside' ? { network_namespace_filepath: `/run/netns/${listening.netns}` } : {};
  const original = {
    name: 'envoy.filters.listener.original_dst',
    typed_config: { '@type': `${API}.listener.original_dst.v3.OriginalDst` },
  };
  const pass = {
    '@type': `${API}.network.tcp_proxy.v3.TcpProxy`,
    stat_prefix: cluster,
    cluster,
  };
  return {
    name: `at-${port}`,
    address: { socket_address: { address: ip, port_value: port, ...namespace } },
    ...(listening.kind === 'transparent' ? { transparent: true } : {}),
    listener_filters: listening.kind === 'explicit' ? [] : [original],
    filter_chains: [{ filters: [{ name: 'envoy.filters.network.tcp_proxy', typed_config: pass }] }],
  };
}

function envoyConfig(listening: Listening): string {
  const limits = { thresholds: [{ max_connections: 100_000, max_pending_requests: 100_000 }] };
  const common = { connect_timeout: '5s', circuit_breakers: limits };
  const far = (port: number) => ({
    ...common,
    name: `far-${port}`,
    type: 'STATIC',
    load_assignment: {
      cluster_name: `far-${port}`,
      endpoints: [
        {
          lb_endpoints: [
            { endpoint: { address: { socket_address: { address: SERVER.ip, port_value: port } } } },
          ],
        },
      ],
    },
  });
  const dialled = { ...common, name: 'dialled', type: 'ORIGINAL_DST', lb_policy: 'CLUSTER_PROVIDED' };
  const isExplicit = listening.kind === 'explicit';
  return JSON.stringify({
    static_resources: {
      listeners: isExplicit
        ? SERVER.ports.map((port) => envoyListener(listening, EXPLICIT, port, `far-${port}`))
        : [envoyListener(listening, OUTBOUND.ip, OUTBOUND.port, 'dialled')],
      clusters: isExplicit ? SERVER.ports.map(far) : [dialled],
    },
  });
}

/** Its command, and the words to it; one worker. */
function commandOf(proxy: ProxyName, config: string): [string, string[]] {
  // A hot restart would be shared with the Envoys of other namespaces.
  const envoy = ['-c', config, '--concurrency', '1', '--disable-hot-restart', '-l', 'warning'];
  return proxy === 'HAProxy' ? ['haproxy', ['-f', config]] : [ENVOY, envoy];
}

let started = 0;

/** Returns once it listens. */
export async function startProxy(lab: Lab, proxy: ProxyName, listening: Listening): Promise<Daemon> {
  started += 1;
  const name = `${proxy}-${started}`;
  const config = join(lab.directory, `${name}.${proxy === 'HAProxy' ? 'cfg' : 'json'}`);
  writeFileSync(config, proxy === 'HAProxy' ? haproxyConfig(listening) : envoyConfig(listening));
  const daemon = lab.daemon(lab.node, name, ...commandOf(proxy, config));
  const { port } = listening.kind === 'explicit' ? { port: SERVER.ports[0] } : OUTBOUND;
  const where = listening.kind === 'inside' ? listening.netns : lab.node;
  await waitFor(`${name} to listen`, async () => {
    if (!daemon.running) {
      throw new Error(`${name} ended:\n${daemon.log()}`);
    }
    return (await runIn(where, 'ss', ['-Hltn', `sport = :${port}`])) !== '';
  });
  return daemon;
}
