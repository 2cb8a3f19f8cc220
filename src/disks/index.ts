export { DiskServer, type DiskServerOptions } from './disk-server.ts';
