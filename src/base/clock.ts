/** Milliseconds: Unix time where they are told to somebody, any steady count where only differences matter. */
export type Clock = () => number;
