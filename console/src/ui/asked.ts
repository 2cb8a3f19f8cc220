/** What a view asks of the server once, and again when it is told to. */
import { useEffect, useState } from 'preact/hooks';
import { ApiError } from '../api.ts';

export interface Asked<T> {
  /** Of the last answer; it stays while it is asked again. */
  readonly value: T | undefined;
  readonly error: ApiError | undefined;
  readonly again: () => void;
}

/** Asks anew when one of `about` changes; what was asked before is forgotten then. */
export const useAsked = <T>(about: readonly unknown[], asking: (signal: AbortSignal) => Promise<T>): Asked<T> => {
  const [state, setState] = useState<Pick<Asked<T>, 'value' | 'error'> & { readonly about: string }>();
  const [count, setCount] = useState(0);
  const key = JSON.stringify(about);
  useEffect(() => {
    const stop = new AbortController();
    asking(stop.signal).then(
      (value) => stop.signal.aborted || setState({ about: key, value, error: undefined }),
      (error: unknown) => {
        if (stop.signal.aborted) return;
        const told = error instanceof ApiError ? error : new ApiError('UNEXPECTED', String(error));
        setState((before) => ({ about: key, value: before?.about === key ? before.value : undefined, error: told }));
      },
    );
    return () => stop.abort();
  }, [key, count]);
  const isOfThis = state?.about === key;
  return {
    value: isOfThis ? state.value : undefined,
    error: isOfThis ? state.error : undefined,
    again: () => setCount((before) => before + 1),
  };
};

/** Every page of a list, one after the other. */
export const allPages = async <T>(
  page: (cursor: string | undefined) => Promise<{ readonly rows: readonly T[]; readonly next: string | undefined }>,
): Promise<T[]> => {
  const all: T[] = [];
  for (let cursor: string | undefined; ; ) {
    const { rows, next } = await page(cursor);
    all.push(...rows);
    if (next === undefined) return all;
    cursor = next;
  }
};
