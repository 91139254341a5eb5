/** What cannot be done with an instance, for whoever asked for it. */

export type InstanceErrorCode =
  | 'KEY_INVALID'
  | 'INSTANCE_NOT_FOUND'
  | 'INSTANCE_BUSY'
  | 'CALLER_NOT_ALLOWED'
  | 'PROCESS_NOT_FOUND'
  | 'NOT_TCP'
  | 'NOT_LISTENING'
  | 'WRONG_NAMESPACE'
  | 'NOT_OWNER'
  | 'LISTENER_TAKEN'
  | 'NOT_ADOPTED';

/** HTTP statuses. */
export const STATUS_OF_INSTANCE_CODE: Readonly<Record<InstanceErrorCode, number>> = {
  KEY_INVALID: 400,
  INSTANCE_NOT_FOUND: 404,
  INSTANCE_BUSY: 409,
  CALLER_NOT_ALLOWED: 403,
  PROCESS_NOT_FOUND: 404,
  NOT_TCP: 409,
  NOT_LISTENING: 409,
  WRONG_NAMESPACE: 409,
  NOT_OWNER: 403,
  LISTENER_TAKEN: 409,
  NOT_ADOPTED: 409,
};

export class InstanceError extends Error {
  override readonly name = 'InstanceError';

  constructor(
    readonly code: InstanceErrorCode,
    message: string,
  ) {
    super(message);
  }

  get status(): number {
    return STATUS_OF_INSTANCE_CODE[this.code];
  }
}
