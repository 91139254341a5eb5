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

export function isKernelError(error: unknown): error is KernelError {
  return (
    error instanceof Error &&
    typeof (error as Partial<KernelError>).errno === 'number' &&
    typeof (error as Partial<KernelError>).syscall === 'string'
  );
}
