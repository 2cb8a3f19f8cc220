/** eventfd(2), timerfd(2), signalfd(2): things that happen, as descriptors. */
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

/** `struct itimerspec`: interval, then value, as seconds and nanoseconds of 64 bits each. */
const itimerspec = new Int32Array(new ArrayBuffer(32));

/** Lets the timerfd expire once in `delayMs` (fractions count; 0 and less are the shortest delay); Infinity disarms it. */
export function armTimerfd(fd: number, delayMs: number): number {
  const armed = delayMs !== Number.POSITIVE_INFINITY;
  const delay = armed ? Math.max(delayMs, 1e-6) : 0;
  const seconds = Math.min(Math.floor(delay / 1000), 2 ** 31 - 1);
  itimerspec[4] = seconds;
  itimerspec[6] = Math.min(Math.floor((delay - seconds * 1000) * 1e6), 999_999_999);
  return result(libc.timerfdSettime(fd, 0, itimerspec, null));
}

/** `sigset_t` of glibc: 1024 bits, signal n at bit n - 1. */
function signalSet(signals: readonly number[]): Uint8Array {
  const set = new Uint8Array(new ArrayBuffer(128));
  for (const signal of signals) set[(signal - 1) >> 3]! |= 1 << ((signal - 1) & 7);
  return set;
}

const SIG_BLOCK = 0;
const SIG_UNBLOCK = 1;

/** Blocks signals on the calling thread alone. See `signalfd` for what that is good for. */
export const blockSignals = (signals: readonly number[]): number =>
  -libc.pthreadSigmask(SIG_BLOCK, signalSet(signals), null);
export const unblockSignals = (signals: readonly number[]): number =>
  -libc.pthreadSigmask(SIG_UNBLOCK, signalSet(signals), null);

/**
 * A non-blocking signalfd for signals that were blocked before. Only signals sent to this thread are sure to show there:
 * V8's own threads do not block them, so SIGTERM sent to the process by `kill(2)` goes to one of those and takes its default
 * action (tried on Node 26). For such signals use `process.on` and watch `uvBackendFd()` in the blocking loop.
 */
export const signalfd = (signals: readonly number[]): number =>
  result(libc.signalfd(-1, signalSet(signals), EFD_CLOEXEC | EFD_NONBLOCK));

/**
 * The fd on which libuv's loop of this thread waits, or -1. It is an epoll fd: a blocking loop that watches it learns that
 * libuv has something to do (a signal, a socket of Node's) and can return to it for a turn.
 */
export const uvBackendFd = libc.uvBackendFd;
