/** A whole device process with the echo session: `node echo-device.ts SOCKET [spinMs]`. Ends on SIGTERM. */
import { Loop } from '../../src/device/loop.ts';
import { accept, listenUnix } from '../../src/sys/index.ts';
import { VirtioFsDevice } from '../../src/virtio/index.ts';
import { EchoHandler } from './echo-handler.ts';

const [socketPath = '', spinMs = '0.05'] = process.argv.slice(2);
const loop = new Loop(Number(spinMs));
const listener = listenUnix(socketPath);
if (listener < 0) throw new Error(`listening at "${socketPath}" failed with errno ${-listener}`);
loop.watch(listener, () => {
  const fd = accept(listener);
  if (fd < 0) return;
  const device: VirtioFsDevice = new VirtioFsDevice(fd, new EchoHandler(), loop, {
    onClosed: () => loop.unserve(device),
    onFault: (message) => console.error(message),
  });
  loop.serve(device);
});
process.on('SIGTERM', () => {
  console.log(JSON.stringify(loop.counters));
  loop.stop();
});
await loop.run();
loop.close();
process.exit(0);
