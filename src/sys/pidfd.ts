/**
 * pidfds (pidfd_open(2)): a descriptor for one process, which never comes to mean another that got the same number. Every
 * function returns a result that is not negative, or the negative errno.
 */
import { POLLIN, pollOne } from './fd.ts';
import * as libc from './libc.ts';

const { result } = libc;

/** The same numbers on every architecture (include/uapi/asm-generic/unistd.h); libc has names for them only since 2.36. */
const SYS_pidfd_send_signal = 424;
const SYS_pidfd_open = 434;

/** A pidfd of process `pid`, closed on exec. −ESRCH when there is none. */
export const pidfdOpen = (pid: number): number => result(libc.syscall(SYS_pidfd_open, pid, 0, 0, 0));

/** Sends a signal by number; 0 only asks whether it could be sent. −ESRCH when the process has been reaped. */
export const pidfdSendSignal = (pidfd: number, signal: number): number =>
  result(libc.syscall(SYS_pidfd_send_signal, pidfd, signal, 0, 0));

/** Whether the process has ended, reaped by its parent or not. */
export const pidfdEnded = (pidfd: number): boolean => (pollOne(pidfd, POLLIN, 0) & POLLIN) !== 0;
