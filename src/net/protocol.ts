/** Of flows that are intercepted. */

export const FLOW_PROTOCOLS = ['tcp', 'udp'] as const;
export type FlowProtocol = (typeof FLOW_PROTOCOLS)[number];
