export {
  Client,
  ClientError,
  type ClientOptions,
  type Download,
  type StreamEvent,
} from './client.ts';
export type { Input, OperationId, ResultOf } from './client-request.ts';
export { type ClientTarget, ConnectionError } from './client-transport.ts';
export { Manager, type ManagerOptions, type UidRange } from './manager.ts';
export type { Problem, ProblemCode } from './problem.ts';
/** Shapes of requests and answers, for `z.infer`. */
export type * as routes from './routes/index.ts';
export {
  type ApiServer,
  claimSocket,
  ListenError,
  type ListenErrorCode,
  type ListenOptions,
  listen,
  type TcpOptions,
} from './server.ts';
export { readSite, type Site, type SitePack } from './site.ts';
export type { KeptStores, UpkeepOptions } from './upkeep.ts';
