/** The device process: `node src/device/main.ts`, started by the host daemon with the link as descriptor 3. */
import { serveDevice } from './server.ts';

await serveDevice();
