export type DatapathErrorCode =
  | 'BPFFS_MISSING'
  | 'CONTESTED'
  | 'IPVS_CONFLICT'
  | 'IPVS_FAILED'
  | 'LAYOUT_MISMATCH'
  | 'LAYOUT_NEWER'
  | 'LINK_CONFLICT'
  | 'LISTENER_LIMIT'
  | 'NFT_FAILED'
  | 'OBJECT_MISSING'
  | 'ROUTE_CONFLICT'
  | 'RULE_CONFLICT';

/** Why the datapath could not be put in place; the message says what to do next. */
export class DatapathError extends Error {
  override readonly name = 'DatapathError';
  constructor(
    readonly code: DatapathErrorCode,
    message: string,
    cause?: unknown,
  ) {
    super(message, { cause });
  }
}
