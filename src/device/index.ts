export {
  encodeMessage,
  LinkError,
  type LinkErrorCode,
  LinkQueue,
  type LinkReader,
  readerOnDevice,
  readerOnHost,
} from './link.ts';
export {
  auditBatch,
  type LinkConfig,
  type LinkEvent,
  type LinkMount,
  type LinkOptions,
  type LinkTarget,
  type LinkVhostUser,
  linkProtocol,
  monotonicMs,
  type ToDevice,
  type ToHost,
} from './link-messages.ts';
