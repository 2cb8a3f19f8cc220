export { facadeRows } from './facade-paths.ts';
export { type FacadeName, type FacadeRow, facadeNames } from './facade-row.ts';
export { defaultLimits, rejectReasons, type ServerLimits } from './limits.ts';
export { type Channel, type MetadataAddress, MetadataServer, type MetadataServerOptions } from './metadata-server.ts';
export { nativeOperations, openApiDocument } from './openapi.ts';
export { SerialMux, type SerialMuxOptions, SYNC_BYTES } from './serial-mux.ts';
export {
  type Incident,
  newTokenRecord,
  TokenDesk,
  type TokenDeskOptions,
  type TokenEvent,
  type TokenRecord,
  type TokenState,
  type TokenStore,
  type TokenVerifier,
  tokenStoreInMemory,
} from './token.ts';
