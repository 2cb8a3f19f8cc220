/** eventfd(2), timerfd(2), and what libuv waits on: things that happen, as descriptors. */
import { readlinkSync } from 'node:fs';
import * as libc from './libc.ts';

const { result } = libc;

const EFD_CLOEXEC = 0o2000000;
const EFD_NONBLOCK = 0o4000;

/** A non-blocking eventfd with `value` on its counter. */
export const eventfd = (value = 0): number => result(libc.eventfd(value, EFD_CLOEXEC | EFD_NONBLOCK));

/** Whether `fd` is an eventfd, as /proc tells. Of an fd from a stranger that is worth knowing before reading or polling it. */
export function isEventfd(fd: number): boolean {
  try {
    return readlinkSync(`/proc/self/fd/${fd}`) === 'anon_inode:[eventfd]';
  } catch {
    return false;
  }
}

const counter = new Uint8Array(new ArrayBuffer(8));
const one = new Uint8Array(new ArrayBuffer(8));
one[0] = 1;

/** Adds 1 to the counter of an eventfd: whoever polls it wakes. */
export const signalEventfd = (fd: number): number => result(libc.write(fd, one, 8));

/** Takes the counter of an eventfd or the expirations of a timerfd back to 0; negative (EAGAIN) when it was 0. */
export const drainEventfd = (fd: number): number => result(libc.read(fd, counter, 8));

const CLOCK_MONOTONIC = 1;

/** A non-blocking timerfd on the monotonic clock. */
export const timerfd = (): number => result(libc.timerfdCreate(CLOCK_MONOTONIC, EFD_CLOEXEC | EFD_NONBLOCK));

/**
 * The fd on which libuv's loop of this thread waits, or -1. It is an epoll fd: a blocking loop that watches it learns that
 * libuv has something to do (a signal, a socket of Node's) and can return to it for a turn.
 */
export const uvBackendFd = libc.uvBackendFd;
