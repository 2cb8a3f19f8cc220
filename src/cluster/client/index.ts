/** The client alone: a command that asks an API starts without loading the server. */

export {
  Client,
  ClientError,
  type Download,
  type StreamEvent,
} from '../client.ts';
export type { Input, OperationId, ResultOf } from '../client-request.ts';
export { type ClientTarget, ConnectionError, type LongBody } from '../client-transport.ts';
