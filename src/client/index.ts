/** What other software of the node is given: `nodesentry/client`. */

export * from './identity-client.js';
export * from './socket-identity.js';
