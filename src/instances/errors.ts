/** What cannot be done with an instance, for whoever asked for it. */

export type InstanceErrorCode = 'KEY_INVALID' | 'INSTANCE_NOT_FOUND' | 'INSTANCE_BUSY';

const STATUS: Readonly<Record<InstanceErrorCode, number>> = {
  KEY_INVALID: 400,
  INSTANCE_NOT_FOUND: 404,
  INSTANCE_BUSY: 409,
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
    return STATUS[this.code];
  }
}
