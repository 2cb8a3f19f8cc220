export * as abi from './abi.ts';
export { type Operation, operations } from './operations.ts';
export { NinepSession, type NinepSessionOptions, type NinepTransport } from './session.ts';
export { notation, type Shape } from './shape.ts';
export { type AttachRequest, NOBODY } from './state.ts';
