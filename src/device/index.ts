export * from './audit-ring-layout.ts';
export {
  encodeMessage,
  LinkError,
} from './link.ts';
export {
  type LinkConfig,
  type LinkMount,
  type LinkOptions,
  type LinkTarget,
  type LinkVhostUser,
  monotonicMs,
  type ToDevice,
  type ToHost,
} from './link-messages.ts';
export { readerOnHost } from './link-on-host.ts';
