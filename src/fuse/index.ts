export * as abi from './abi.ts';
export * as constants from './constants.ts';
export { DevFuse } from './dev-fuse.ts';
export type { Exchange, HeldExchange, RequestHandler } from './exchange.ts';
export { initFlags, takenFlags } from './init-flags.ts';
export { type Operation, operations } from './operations.ts';
export { FuseSession } from './session.ts';
