export {
  Client,
  ClientError,
  type ClientOptions,
  type Input,
  type OperationId,
  type ResultOf,
  type StreamEvent,
} from './client.ts';
export { type ClientTarget, ConnectionError } from './client-transport.ts';
export type * from './host-port.ts';
export { Manager, type ManagerOptions } from './manager.ts';
export {
  type ApiServer,
  ListenError,
  type ListenErrorCode,
  type ListenOptions,
  listen,
  type TcpOptions,
} from './server.ts';
export type { UidRange } from './vms.ts';
