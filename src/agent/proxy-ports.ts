/** The ports of the node's proxies: where they listen for what is intercepted, and where pods dial them by themselves. */

import { networkInterfaces } from 'node:os';
import type { Instance } from '../config/config.js';
import type { Announced } from '../datapath/announced.js';
import type { InstanceSlots } from '../datapath/instance-slots.js';
import type { DatapathPrograms } from '../datapath/manifest.js';
import { PortSet } from '../datapath/port-set.js';
import type { InstanceGenerations } from '../instances/generations.js';
import { u32 } from '../kernel/struct.js';
import type { ExplanationParts } from '../reconcile/explanation.js';

export interface ProxyPortsOptions {
  readonly maps: Pick<DatapathPrograms['maps'], 'proxy_ports' | 'udp_proxy_ports' | 'explicit_ports'>;
  /** Of this moment. */
  readonly instances: () => readonly Instance[];
  readonly generations: Pick<InstanceGenerations, 'portsOf'>;
  readonly announced: Pick<Announced, 'list'>;
  readonly slots: Pick<InstanceSlots, 'numberOf'>;
}

export class ProxyPorts {
  /** For the rounds, each of which looks at them. */
  readonly sets: readonly PortSet[];
  readonly #options: ProxyPortsOptions;

  constructor(options: ProxyPortsOptions) {
    this.#options = options;
    const { maps, slots } = options;
    this.sets = [
      new PortSet(maps.proxy_ports, () => this.#listening(), 'port of a proxy'),
      new PortSet(maps.udp_proxy_ports, () => this.#takingDatagrams(), 'UDP port of a proxy'),
      new PortSet(
        maps.explicit_ports,
        () => [...this.#explicit().keys()],
        'explicit port',
        (port) => u32(slots.numberOf(this.#explicit().get(port) ?? '')),
      ),
    ];
  }

  /** Before a round finds them missing: nothing was damaged. */
  ensure(): void {
    for (const set of this.sets) {
      set.ensure();
    }
  }

  /** What of a proxy is at an address of the node's own; undefined: nothing, or the address is another's. */
  readonly at: NonNullable<ExplanationParts['atNode']> = (ip, port, protocol) => {
    const own = Object.values(networkInterfaces()).flatMap((addresses) => addresses ?? []);
    const explicit = protocol === 'tcp' ? this.#explicit().get(port) : undefined;
    const taking = protocol === 'tcp' ? this.#listening() : this.#takingDatagrams();
    return own.some(({ address }) => address === ip) && (explicit !== undefined || taking.includes(port))
      ? { explicit }
      : undefined;
  };

  #listening(): number[] {
    const { instances, generations, announced } = this.#options;
    return [...generations.portsOf(instances()), ...announced.list().map(({ port }) => port)];
  }

  #takingDatagrams(): number[] {
    const listed = this.#options
      .instances()
      .flatMap(({ outboundUdp = [], inboundUdp = [] }) => [...outboundUdp, ...inboundUdp]);
    return listed.map(({ port }) => port);
  }

  /** Names of instances. */
  #explicit(): ReadonlyMap<number, string> {
    return new Map(
      this.#options
        .instances()
        .flatMap(({ name, explicit = [] }) => explicit.map(({ port }) => [port, name] as const)),
    );
  }
}
