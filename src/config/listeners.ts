/** Listener addresses: how they are written, and when two of them would be one socket. */

import { type Family, familyOf } from '../net/family.js';
import { formatSocketAddress, parseSocketAddress } from '../net/socket-address.js';
import { type Config, type Instance, type ListenerAddress, servesBothFamilies } from './config.js';

/** Undefined where the text is not an address with a port other than 0. */
export function parseListenerAddress(text: string): ListenerAddress | undefined {
  const address = parseSocketAddress(text);
  if (address === undefined || address.port === 0) {
    return undefined;
  }
  return {
    host: address.ip,
    port: address.port,
    family: familyOf(address.ip),
    text: formatSocketAddress(address),
  };
}

export interface Overlap {
  readonly path: readonly (string | number)[];
  readonly message: string;
}

interface Claim {
  readonly path: readonly (string | number)[];
  readonly list: readonly ListenerAddress[];
  readonly text: string;
  readonly owner: string;
  readonly protocol: 'tcp' | 'udp';
  readonly port: number;
  readonly hosts: readonly { readonly family: Family; readonly host: string }[];
}

/**
 * Every address that another list has claimed before it. One socket can serve one instance and direction, and that of the
 * metrics none: the agent would take it for the proxy's.
 */
export function findOverlaps({ instances, metrics }: Pick<Config, 'instances' | 'metrics'>): Overlap[] {
  const claims = [...instances.flatMap(claimsOf), ...claimOfMetrics(metrics.listen)];
  return claims.flatMap((claim, index) => {
    const earlier = claims
      .slice(0, index)
      .find((other) => other.list !== claim.list && overlap(other, claim));
    return earlier === undefined
      ? []
      : [{ path: claim.path, message: `${claim.text} overlaps ${earlier.text}, the ${earlier.owner}` }];
  });
}

function claimsOf(instance: Instance, index: number): Claim[] {
  return (['outbound', 'inbound', 'explicit', 'outboundUdp', 'inboundUdp'] as const).flatMap((direction) =>
    (instance[direction] ?? []).map((address, place, list) =>
      claim(address, list, {
        path: ['instances', index, direction, ...(list.length > 1 ? [place] : [])],
        owner: `${direction} of instance ${instance.name}`,
        protocol: direction.endsWith('Udp') ? 'udp' : 'tcp',
      }),
    ),
  );
}

function claimOfMetrics(listen: ListenerAddress | undefined): Claim[] {
  return listen === undefined
    ? []
    : [
        claim(listen, [listen], {
          path: ['metrics', 'listen'],
          owner: 'address of the metrics',
          protocol: 'tcp',
        }),
      ];
}

function claim(
  { text, port, family, host }: ListenerAddress,
  list: readonly ListenerAddress[],
  of: Pick<Claim, 'path' | 'owner' | 'protocol'>,
): Claim {
  const both = servesBothFamilies(list) ? [{ family: 4, host: '0.0.0.0' } as const] : [];
  return { ...of, list, text, port, hosts: [{ family, host }, ...both] };
}

function overlap(a: Claim, b: Claim): boolean {
  return (
    a.protocol === b.protocol &&
    a.port === b.port &&
    a.hosts.some((left) =>
      b.hosts.some(
        (right) =>
          left.family === right.family &&
          (left.host === right.host || isWildcard(left.host) || isWildcard(right.host)),
      ),
    )
  );
}

function isWildcard(host: string): boolean {
  return host === '0.0.0.0' || host === '::';
}
