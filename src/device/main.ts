/**
 * The device process, started by the host daemon: `node src/device/main.ts`, with the link as descriptor 3, or with
 * `--link PATH`, where it listens for one daemon after another; with `--keeper PATH`, what it serves outlives it. With
 * `--compile` it ends once it is loaded: Node keeps what it compiled.
 */
import { parseArgs } from 'node:util';
import { serveDevice } from './server.ts';

/** The descriptor that the host daemon gives a device process. */
const LINK_FD = 3;

const { link, keeper, compile } = parseArgs({
  options: { link: { type: 'string' }, keeper: { type: 'string' }, compile: { type: 'boolean' } },
}).values;
if (compile !== true) await serveDevice(link === undefined ? { fd: LINK_FD } : { path: link }, keeper);
