/** Why a question about identity has no answer. */
export type IdentityReason =
  | 'KEY_INVALID'
  | 'WORKLOAD_NOT_FOUND'
  | 'WORKLOAD_UNCONFIRMED'
  | 'AMBIGUOUS'
  | 'ASSURANCE_TOO_LOW'
  | 'NOT_SYNCED';

/** HTTP status of each reason. 412: what the caller asked for as a condition, `minAssurance`, does not hold. */
export const STATUS_OF_REASON: Readonly<Record<IdentityReason, number>> = {
  KEY_INVALID: 400,
  WORKLOAD_NOT_FOUND: 404,
  WORKLOAD_UNCONFIRMED: 409,
  AMBIGUOUS: 409,
  ASSURANCE_TOO_LOW: 412,
  NOT_SYNCED: 503,
};

export class IdentityError extends Error {
  override readonly name = 'IdentityError';
  readonly status: number;

  constructor(
    readonly code: IdentityReason,
    message: string,
  ) {
    super(message);
    this.status = STATUS_OF_REASON[code];
  }
}
