/** Runs QEMU's own C virtiofsd (qemu-system-common), the peer that tests and benches compare with. */
import { spawn } from 'node:child_process';
import { once } from 'node:events';
import { mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';

export interface Virtiofsd extends AsyncDisposable {
  /** The vhost-user socket; it serves one connection and then virtiofsd ends. */
  readonly socket: string;
  readonly pid: number;
}

export const virtiofsdProgram = '/usr/lib/qemu/virtiofsd';

/** Starts it on a directory and resolves once its socket listens. */
export async function startVirtiofsd(options: {
  readonly source: string;
  readonly cache: 'none' | 'auto' | 'always';
}): Promise<Virtiofsd> {
  const dir = mkdtempSync(join(tmpdir(), 'porthole-virtiofsd-'));
  const socket = join(dir, 'socket');
  const child = spawn(
    virtiofsdProgram,
    [`--socket-path=${socket}`, '-f', '-o', `source=${options.source}`, '-o', `cache=${options.cache}`],
    { stdio: ['ignore', 'ignore', 'pipe'] },
  );
  const ended = Promise.race([once(child, 'close'), once(child, 'error')]);
  const listening = Promise.withResolvers<void>();
  let said = '';
  child.stderr.setEncoding('utf8').on('data', (text: string) => {
    said += text;
    if (said.includes('Waiting for vhost-user socket connection')) listening.resolve();
  });
  const fail = async (): Promise<never> => {
    await ended;
    throw new Error(`${virtiofsdProgram} ended before it listened: ${said}`);
  };
  const failed = fail();
  failed.catch(() => {});
  await Promise.race([listening.promise, failed]);
  return {
    socket,
    pid: child.pid ?? 0,
    async [Symbol.asyncDispose]() {
      if (child.exitCode === null && child.signalCode === null) child.kill('SIGTERM');
      await ended;
      rmSync(dir, { recursive: true, force: true });
    },
  };
}
