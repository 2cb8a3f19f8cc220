/** Where the time comes from. */
export interface Clock {
  /** Milliseconds since the epoch. */
  readonly wallMs: () => number;
  /** Milliseconds that never run backwards. */
  readonly monotonicMs: () => number;
}
