/** Why the node's CNI configuration could not be edited; nothing was changed then. */

export type CniErrorCode =
  | 'NO_CONFIGURATION' // the folder has no network configuration
  | 'INVALID_CONFIGURATION' // a file is not what a runtime would accept
  | 'UNREADABLE' // a file or folder cannot be read
  | 'UNWRITABLE'
  | 'STATE_INVALID' // what we kept of an earlier installation cannot be understood
  | 'CHANGED_MEANWHILE'; // somebody else wrote the file at the same moment

export class CniError extends Error {
  readonly code: CniErrorCode;

  constructor(code: CniErrorCode, message: string, options?: ErrorOptions) {
    super(message, options);
    this.name = 'CniError';
    this.code = code;
  }
}

/** The message of whatever was thrown. */
export function reasonOf(error: unknown): string {
  return error instanceof Error ? error.message : String(error);
}
