/** Why the kernel said no: what was being done, which call, which errno. Thrown by both addons. */
export interface KernelError extends Error {
  /** Symbolic errno, such as `EPERM`. */
  readonly code: string;
  /** Positive errno. */
  readonly errno: number;
  readonly syscall: string;
  /** The verifier's log, where loading a BPF object failed. */
  readonly log?: string;
}

/** Told by its fields: both addons throw plain Errors. */
export function isKernelError(error: unknown): error is KernelError {
  return (
    error instanceof Error &&
    typeof (error as Partial<KernelError>).errno === 'number' &&
    typeof (error as Partial<KernelError>).syscall === 'string'
  );
}

/** Whether the error says that an interface, or what is attached to it, has gone: they may at any moment. */
export function isGone(error: unknown): boolean {
  return (
    isKernelError(error) && (error.code === 'ENODEV' || error.code === 'ENOLINK' || error.code === 'ENOENT')
  );
}

/** What `step` returns; undefined where what it is about has gone. Other errors are thrown on. */
export function unlessGone<T>(step: () => T): T | undefined {
  try {
    return step();
  } catch (error) {
    if (isGone(error)) {
      return undefined;
    }
    throw error;
  }
}
