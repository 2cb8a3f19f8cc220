/** What `work` comes to, or a rejection with the signal's reason as soon as it is aborted: whatever becomes of the work then. */
export const unlessAborted = async <T>(work: Promise<T> | T, signal: AbortSignal): Promise<T> => {
  const aborted = Promise.withResolvers<never>();
  aborted.promise.catch(() => {});
  const abort = (): void => aborted.reject(signal.reason);
  signal.addEventListener('abort', abort, { once: true });
  if (signal.aborted) abort();
  try {
    return await Promise.race([work, aborted.promise]);
  } finally {
    signal.removeEventListener('abort', abort);
  }
};
