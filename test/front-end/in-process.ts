/** A front end and our device in one thread, tied by a socket pair: the device runs whenever the front end waits. */
import type { RequestHandler } from '../../src/fuse/index.ts';
import { POLLIN, pollOne, setNonBlocking, socketPair } from '../../src/sys/index.ts';
import { type FdWatcher, VirtioFsDevice, type VirtioFsOptions } from '../../src/virtio/index.ts';
import { FrontEnd, type FrontEndOptions } from './front-end.ts';

/** Polls what it watches when told to: the smallest loop there is. */
class PolledWatcher implements FdWatcher {
  readonly watched = new Map<number, () => void>();

  watch(fd: number, onReadable: () => void): void {
    this.watched.set(fd, onReadable);
  }

  unwatch(fd: number): void {
    this.watched.delete(fd);
  }

  /** Runs the callbacks of all fds that are readable now. */
  poll(): void {
    for (const [fd, onReadable] of this.watched) if (this.watched.has(fd) && pollOne(fd, POLLIN, 0) > 0) onReadable();
  }
}

export interface InProcess {
  front: FrontEnd;
  device: VirtioFsDevice;
  watcher: PolledWatcher;
  /** Runs the device once over everything that is there. */
  pump: () => void;
  closedBy: () => string | undefined;
  faults: string[];
  close: () => void;
}

export function inProcess(
  handler: RequestHandler,
  frontOptions: FrontEndOptions = {},
  deviceOptions: VirtioFsOptions = {},
): InProcess {
  const pair = socketPair();
  if (typeof pair === 'number') throw new Error(`making a socket pair failed with errno ${-pair}`);
  setNonBlocking(pair[1], true);
  const watcher = new PolledWatcher();
  const faults: string[] = [];
  let reason: string | undefined;
  const device = new VirtioFsDevice(pair[1], handler, watcher, {
    onClosed: (why) => {
      reason = why;
    },
    onFault: (message) => faults.push(message),
    ...deviceOptions,
  });
  const pump = (): void => {
    watcher.poll();
    device.process(64);
  };
  const front = new FrontEnd(pair[0], { pump, ...frontOptions });
  return {
    front,
    device,
    watcher,
    pump,
    closedBy: () => reason,
    faults,
    close: () => {
      device.close('the test is over');
      front.close();
    },
  };
}
