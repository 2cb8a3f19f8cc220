/** The thread that writes notifications which may wait for locks in the kernel. Owns the descriptor it is given. */
import { parentPort, workerData } from 'node:worker_threads';
import { close, write } from '../sys/index.ts';

const { fd } = workerData as { readonly fd: number };

/** `undefined` ends the thread. */
parentPort?.on('message', (message: Uint8Array | undefined) => {
  // ENOENT, for what the kernel does not hold any more, is no failure.
  if (message !== undefined) return void write(fd, message);
  close(fd);
  parentPort?.close();
});
