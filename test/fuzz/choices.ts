/** Takes decisions from a fuzzer's input, one byte each; 0 once it has ended. */
export class Choices {
  readonly #bytes: Uint8Array;
  #at = 0;

  constructor(bytes: Uint8Array) {
    this.#bytes = bytes;
  }

  get ended(): boolean {
    return this.#at >= this.#bytes.length;
  }

  byte(): number {
    return this.#bytes[this.#at++] ?? 0;
  }

  of<T>(choices: readonly T[]): T {
    return choices[this.byte() % choices.length]!;
  }
}
