export * as abi from './abi.ts';
export * as constants from './constants.ts';
export { DevFuse } from './dev-fuse.ts';
export type { Exchange, HeldExchange, Notifier, RequestHandler } from './exchange.ts';
export { type InitFlag, initFlags, type TransportKind, takenFlags } from './init-flags.ts';
export { type Operation, operations } from './operations.ts';
export { FuseSession, type FuseSessionOptions } from './session.ts';
