/** Readers that overlap the writer, in a guest and on this machine, and what they report (`images/tiny/probe/readers.c`). */
import { spawn } from 'node:child_process';
import { once } from 'node:events';
import { closeSync, copyFileSync, mkdtempSync, openSync, rmSync, writeSync } from 'node:fs';
import { chmod } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import path from 'node:path';
import { Guest } from '../../images/tiny/guest.ts';
import { tinyImage } from '../../images/tiny/image.ts';
import type { Report } from '../../images/tiny/probe/readers.ts';

/** Where readers run. */
export interface Place extends AsyncDisposable {
  readonly name: string;
  /** Tells the readers, by another channel than the tree, that the write of this number is complete. */
  tell(number: number): void;
  /** Starts one reader of a value of the tree; the returned function ends it and answers its report. */
  read(mode: string, value: string, uid: number): () => Promise<Report>;
}

/** More than any run takes; readers are ended by SIGTERM. */
const SECONDS = 900;

export async function guestPlace(socket: string): Promise<Place> {
  const guest = await Guest.start({ virtiofs: [{ socket, tag: 'metadata' }], numbers: true, cpus: 2 });
  const pauseMs = 20;
  await guest.mount('metadata', '/run/metadata');
  const floor = await guest.keepNumbers();
  // Nodes and pages come and go, and listings bring attributes, while readers hold them.
  guest.spawn(
    'while sleep 0.3; do ls -lR /run/metadata >/dev/null; echo 3 >/proc/sys/vm/drop_caches; cat /run/metadata/instance/value; done >/dev/null',
  );
  return {
    name: 'a guest over virtiofs',
    tell: (number) => guest.sendNumber(number),
    read: (mode, value, uid) => {
      const job = guest.spawn(`exec readers ${mode} /run/metadata/${value} /dev/shm/floor ${SECONDS} ${pauseMs}`, {
        uid,
      });
      return async () => {
        job.kill();
        const { text, errorText } = await job.done;
        return report(text, errorText);
      };
    },
    [Symbol.asyncDispose]: async () => {
      floor.kill();
      await guest[Symbol.asyncDispose]();
    },
  };
}

export async function mountPlace(mountPoint: string): Promise<Place> {
  const directory = mkdtempSync(path.join(tmpdir(), 'porthole-readers-'));
  await chmod(directory, 0o755);
  const program = path.join(directory, 'readers');
  copyFileSync(path.join((await tinyImage()).probes, 'readers'), program);
  const floorFile = path.join(directory, 'floor');
  const floor = openSync(floorFile, 'w', 0o644);
  const bytes = Buffer.alloc(8);
  const tell = (number: number): void => {
    bytes.writeBigUInt64LE(BigInt(number));
    writeSync(floor, bytes, 0, 8, 0);
  };
  tell(0);
  const pauseMs = 8;
  return {
    name: 'this machine over /dev/fuse',
    tell,
    read: (mode, value, uid) => {
      const args = [mode, path.join(mountPoint, value), floorFile, String(SECONDS), String(pauseMs)];
      const child = spawn(program, args, { uid, gid: uid, stdio: ['ignore', 'pipe', 'pipe'] });
      let text = '';
      let errorText = '';
      child.stdout.setEncoding('utf8').on('data', (piece: string) => (text += piece));
      child.stderr.setEncoding('utf8').on('data', (piece: string) => (errorText += piece));
      const closed = once(child, 'close');
      return async () => {
        child.kill();
        await closed;
        return report(text, errorText);
      };
    },
    [Symbol.asyncDispose]: async () => {
      closeSync(floor);
      rmSync(directory, { recursive: true, force: true });
    },
  };
}

function report(text: string, errorText: string): Report {
  try {
    return JSON.parse(text) as Report;
  } catch {
    throw new Error(`a reader did not report: ${JSON.stringify(text)} ${errorText}`);
  }
}
