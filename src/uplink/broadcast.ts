/**
 * The same values for several readers, as fast as the slowest takes them: no reader is ahead by more than one. The first
 * failure, of the source or of a reader that ends early, ends it for all.
 */
export const broadcast = <T>(source: AsyncIterable<T>, readers: number): AsyncGenerator<T, void>[] => {
  const iterator = source[Symbol.asyncIterator]();
  /** What comes next for who has taken all before, and how many have not asked for more. */
  let turn: Promise<IteratorResult<T>> | undefined;
  let taken = 0;
  let round = Promise.withResolvers<void>();
  let isOver = false;

  const next = async (): Promise<IteratorResult<T>> => {
    turn ??= iterator.next();
    const current = turn;
    const all = round;
    if (++taken === readers) {
      taken = 0;
      turn = undefined;
      round = Promise.withResolvers();
      all.resolve();
    } else await all.promise;
    return current;
  };

  return Array.from({ length: readers }, async function* () {
    let isDone = false;
    try {
      for (;;) {
        const result = await next();
        if (isOver) throw new Error('another reader of the same bytes ended');
        if (result.done === true) break;
        yield result.value;
      }
      isDone = true;
    } finally {
      if (!isDone) {
        isOver = true;
        round.resolve();
        await iterator.return?.();
      }
    }
  });
};
