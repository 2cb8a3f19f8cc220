/**
 * Stands between a host daemon and its device process, and passes on what they say. SIGSTOP makes it keep everything:
 * mutations stay in flight, and rings, sockets and mounts go on, until SIGCONT.
 */
import { spawn } from 'node:child_process';
import { Socket } from 'node:net';
import { fileURLToPath } from 'node:url';

const main = fileURLToPath(new URL('../../src/device/main.ts', import.meta.url));
const device = spawn(process.execPath, ['--disable-warning=ExperimentalWarning', main], {
  stdio: ['ignore', 'inherit', 'inherit', 'pipe'],
  cwd: '/',
});
const up = new Socket({ fd: 3 });
const down = device.stdio[3] as Socket;
for (const socket of [up, down]) socket.on('error', () => socket.destroy());
up.pipe(down);
down.pipe(up);
device.on('exit', (code) => process.exit(code ?? 1));
