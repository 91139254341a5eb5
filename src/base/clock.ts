/** Milliseconds: Unix time where they are told to somebody, any steady count where only differences matter. */
export type Clock = () => number;

/**
 * Unix time as it was when the process started, and steady from there: whoever sets the node's clock shortens and
 * lengthens no term that is counted by this one.
 */
export const steadyUnixMs: Clock = () => performance.timeOrigin + performance.now();
