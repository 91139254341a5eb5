/** What stands in the recordings where kube-proxy wrote an address, and the address that it was recorded with. */

/** `@WEB4@`, `@WEB6@`, … */
export const RECORDED = {
  /** The node's own, as its Node object has them. */
  NODE: { 4: '10.199.0.1', 6: 'fd00:199::1' },
  /** --cluster-cidr. */
  PODS: { 4: '10.66.0.0/16', 6: 'fd00:66::/32' },
  /** --service-cluster-ip-range of the API server. */
  SERVICES: { 4: '10.96.0.0/16', 6: 'fd00:96::/112' },
  /** The API server's service, for which nothing answers. */
  KUBERNETES: { 4: '10.96.0.1', 6: 'fd00:96::1' },
  /** Service `web`, port 80. */
  WEB: { 4: '10.96.0.10', 6: 'fd00:96::10' },
  /** Service `outside`, port 80 and the node port 30080. */
  OUTSIDE: { 4: '10.96.0.20', 6: 'fd00:96::20' },
  /** Service `sticky`, port 80, sessionAffinity ClientIP. */
  STICKY: { 4: '10.96.0.30', 6: 'fd00:96::30' },
  /** The two endpoints of each service, port 80. */
  FIRST: { 4: '10.200.1.1', 6: 'fd00:200::1' },
  SECOND: { 4: '10.200.1.2', 6: 'fd00:200::2' },
} as const;

export type Placeholder = keyof typeof RECORDED;
export type Addresses = Readonly<Record<Placeholder, { readonly 4: string; readonly 6: string }>>;

export const NODE_PORT = 30_080;

/** As nftables' names of chains have them: without colons. */
const dotted = (ip: string) => ip.replaceAll(':', '.');

function pairs(addresses: Addresses): [string, string][] {
  return Object.entries(addresses).flatMap(([name, ip]): [string, string][] => [
    [ip[4], `@${name}4@`],
    [ip[6], `@${name}6@`],
    [dotted(ip[6]), `@${name}6.@`],
  ]);
}

/** The text of a recording, from what kube-proxy wrote. */
export function withPlaceholders(text: string): string {
  // Not where the address is only a part of another one.
  return pairs(RECORDED).reduce(
    (rest, [ip, placeholder]) =>
      rest.replace(
        new RegExp(`(?<![\\da-f.:])${ip.replaceAll('.', '\\.')}(?![\\da-f.]|:[\\da-f:]*:)`, 'g'),
        placeholder,
      ),
    text,
  );
}

/** The other way round, for a node that has these. */
export function withAddresses(recording: string, addresses: Addresses): string {
  return pairs(addresses).reduce((rest, [ip, placeholder]) => rest.replaceAll(placeholder, ip), recording);
}
