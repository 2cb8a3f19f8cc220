export {
  encodeMessage,
  LinkError,
  type LinkErrorCode,
  LinkQueue,
  type LinkReader,
  readerOnDevice,
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
export { readerOnHost } from './link-on-host.ts';
