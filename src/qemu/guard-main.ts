/**
 * The guard of one boot of a VM that may start elsewhere: `guard LEASE-FILE LEASE-ID PROGRAM [ARGUMENT]...`. It is the parent of
 * QEMU, which the kernel kills when the guard dies; it kills QEMU when the lease has run out, or is another. It waits for nobody:
 * the host daemon may be dead, or stopped. It loads neither `sys` nor schemas.
 */
import { spawn } from 'node:child_process';
import { writeSync } from 'node:fs';
import { constants, setPriority } from 'node:os';
import { leaseEnded, leaseLeftMs } from './lease-file.ts';

const lookEveryMs = 100;

const [file, id, program, ...args] = process.argv.slice(2);
if (file === undefined || id === undefined || program === undefined)
  throw new Error('usage: guard LEASE-FILE LEASE-ID PROGRAM [ARGUMENT]...');

const give = (): never => {
  writeSync(2, `${leaseEnded.words}\n`);
  process.exit(leaseEnded.status);
};

if (leaseLeftMs(file, id) === 0) give();
const child = spawn(program, args, { stdio: 'inherit', env: { PATH: process.env['PATH'] } });
let isOver = false;
setInterval(() => {
  isOver ||= leaseLeftMs(file, id) === 0;
  if (isOver) child.kill('SIGKILL');
}, lookEveryMs);
// Who finds this process ended takes QEMU for ended.
child.once('exit', (status, signal) => {
  if (isOver) give();
  process.exit(status ?? 128 + constants.signals[signal!]);
});
try {
  // Of this process alone: guests that keep all processors busy must not keep it from its look.
  setPriority(constants.priority.PRIORITY_HIGHEST);
} catch {
  // Root's alone.
}
