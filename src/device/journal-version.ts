/** Raised by every change of a journal's layout: a successor that does not know the version starts afresh. */
export const JOURNAL_VERSION = 1;
