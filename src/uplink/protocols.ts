/**
 * What a connection to a manager is for is said by ALPN (RFC 7301), with the version: `porthole-store/1`. A host makes one
 * connection by which it asks (`store`), and one by which it is asked (`calls`): on that one the manager, which took the
 * connection, is the client of HTTP/2. `enrol` is for who has no certificate yet. Each side accepts its own version and the
 * one before; of the first there is none before.
 */
export const purposes = ['store', 'calls', 'enrol'] as const;
export type Purpose = (typeof purposes)[number];

/** Newest first. */
export const versions = [1] as const;

export const alpnOf = (purpose: Purpose): string[] => versions.map((version) => `porthole-${purpose}/${version}`);

export const purposeOf = (alpn: string | false | null): Purpose | undefined =>
  purposes.find((purpose) => alpnOf(purpose).includes(alpn || ''));

/** A peer that says nothing for as long is gone. */
export const heartbeat = { everyMs: 3_000, withinMs: 6_000 } as const;
