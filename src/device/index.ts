export * from './audit-ring-layout.ts';
export { JournalFile } from './journal.ts';
export { JOURNAL_VERSION } from './journal-version.ts';
export {
  encodeMessage,
  LinkError,
  readerOnDevice,
} from './link.ts';
export {
  isSpoken,
  LINK_PROTOCOL,
  type LinkConfig,
  type LinkMount,
  type LinkNinep,
  type LinkOptions,
  type LinkTarget,
  type LinkVhostUser,
  type LinkVsock,
  type LinkWay,
  monotonicMs,
  type ToDevice,
  type ToHost,
  vsockPortOf,
} from './link-messages.ts';
export { readerOnHost } from './link-on-host.ts';
export { Loop, type Served } from './loop.ts';
export type { NumberedUpstream } from './mutation-log.ts';
export { ConnectionJournal } from './session-journal.ts';
