export type StartErrorCode =
  | 'COMMAND_NOT_FOUND'
  | 'COMMAND_NOT_EXECUTABLE'
  | 'DIRECTORY_MISSING'
  | 'LIMITS_UNAVAILABLE'
  | 'LISTEN_FAILED'
  | 'SPAWN_FAILED';

/** Why an instance is not started. */
export class InstanceStartError extends Error {
  override readonly name = 'InstanceStartError';
  readonly code: StartErrorCode;

  constructor(code: StartErrorCode, message: string, options?: ErrorOptions) {
    super(message, options);
    this.code = code;
  }

  /** Whether somebody has to change something first. */
  get lasting(): boolean {
    return this.code !== 'LISTEN_FAILED' && this.code !== 'SPAWN_FAILED';
  }
}
