/** The network disks of a region: raw files below a directory, each exported by a `qemu-nbd` of its own. */
import { randomBytes } from 'node:crypto';
import { once } from 'node:events';
import {
  chownSync,
  closeSync,
  existsSync,
  fstatSync,
  fsyncSync,
  ftruncateSync,
  openSync,
  readFileSync,
  renameSync,
  rmSync,
  writeFileSync,
} from 'node:fs';
import { type AddressInfo, connect, createServer } from 'node:net';
import { join } from 'node:path';
import { setTimeout as pause } from 'node:timers/promises';
import * as z from 'zod';
import {
  killStrays,
  type LastingProcess,
  type Launcher,
  LogLimits,
  lastLine,
  makeSearchable,
  writeDiskKey,
} from '../qemu/index.ts';
import type { DiskWish, NetworkDisks, OpenDisk } from '../records/index.ts';

export interface DiskServerOptions {
  /** Of the disks, and of what is known of their exports. */
  readonly directory: string;
  readonly launcher: Launcher;
  /** Where hosts reach them: an address of this machine. Each export has a port of its own. */
  readonly address: string;
  /** Whose the disks are, and as whom they are exported; undefined: this user. */
  readonly uid?: number | undefined;
  readonly onTrouble: (what: string) => void;
}

const Kept = z.looseObject({
  /** No export of a lower one is opened any more. */
  epoch: z.int().positive(),
  port: z.int().optional(),
  key: z.string().optional(),
  process: z
    .looseObject({ pid: z.int(), startTicks: z.int(), machineBootId: z.string(), unit: z.string().optional() })
    .optional(),
});
type Kept = z.infer<typeof Kept>;

const readyWithinMs = 20_000;
const lookEveryMs = 20;
const keyBytes = 32;

export class DiskServer implements NetworkDisks {
  readonly id: string;
  readonly #options: DiskServerOptions;
  readonly #open = new Map<string, LastingProcess>();
  readonly #logLimits: LogLimits;

  constructor(options: DiskServerOptions) {
    this.#options = options;
    makeSearchable(options.directory);
    this.id = idOf(join(options.directory, 'id'));
    // Whoever reaches a port, with a key or without, is written of there.
    this.#logLimits = new LogLimits({
      files: () => [...this.#open.keys()].map((id) => this.#path(id, 'log')),
      onTrouble: options.onTrouble,
    });
  }

  /**
   * Opens a disk for an epoch, and makes it where it is not there. Whoever had it open by a lower epoch has not any more when it
   * resolves. Rejects for an epoch lower than one that it was opened for. One whose export has ended is found where it was and by
   * the key that it had for that epoch, so that a QEMU which has it goes on.
   */
  async open({ id, epoch, sizeBytes }: DiskWish): Promise<OpenDisk> {
    const known = this.#read(id);
    if (known !== undefined && known.epoch > epoch)
      throw new Error(`the disk of ${id} was opened for epoch ${known.epoch}, and is not for ${epoch} any more`);
    const process = this.#processOf(id, known);
    const before = known?.epoch === epoch ? known : undefined;
    if (before?.port !== undefined && before.key !== undefined && process !== undefined)
      return { address: this.#options.address, port: before.port, key: before.key };
    await this.#end(id, process);
    const key = before?.key ?? randomBytes(keyBytes).toString('hex');
    this.#keep(id, { epoch, key, port: before?.port });
    this.#make(id, sizeBytes);
    writeDiskKey(this.#path(id, 'key'), key, this.#options.uid);
    const port = await this.#export(id, epoch, before?.port);
    const { identity } = this.#open.get(id)!;
    this.#keep(id, { epoch, port, key, process: { ...identity } });
    return { address: this.#options.address, port, key };
  }

  lost(): readonly string[] {
    return [...this.#open].filter(([, process]) => !process.alive).map(([id]) => id);
  }

  /** Ends its export, and deletes it. */
  async remove(id: string): Promise<void> {
    await this.#end(id, this.#processOf(id, this.#read(id)));
    rmSync(this.#path(id, ''), { recursive: true, force: true });
  }

  /** Lets go of the processes: exports go on. */
  [Symbol.dispose](): void {
    this.#logLimits[Symbol.dispose]();
    for (const process of this.#open.values()) process.release();
    this.#open.clear();
  }

  #path(id: string, name: string): string {
    return join(this.#options.directory, id, name);
  }

  #read(id: string): Kept | undefined {
    const file = this.#path(id, 'export.json');
    return existsSync(file) ? Kept.parse(JSON.parse(readFileSync(file, 'utf8'))) : undefined;
  }

  #keep(id: string, kept: Kept): void {
    makeSearchable(this.#path(id, ''));
    const file = this.#path(id, 'export.json');
    writeFileSync(`${file}.new`, JSON.stringify(kept), { mode: 0o600, flush: true });
    renameSync(`${file}.new`, file);
    const fd = openSync(this.#path(id, ''), 'r');
    fsyncSync(fd);
    closeSync(fd);
  }

  #processOf(id: string, known: Kept | undefined): LastingProcess | undefined {
    const open = this.#open.get(id);
    if (open?.alive === true) return open;
    open?.release();
    this.#open.delete(id);
    if (known?.process === undefined) return undefined;
    const { unit, ...identity } = known.process;
    const found = this.#options.launcher.adopt({ ...identity, ...(unit && { unit }) }, this.#path(id, 'log'));
    if (found !== undefined) this.#open.set(id, found);
    return found;
  }

  async #end(id: string, process: LastingProcess | undefined): Promise<void> {
    this.#open.delete(id);
    process?.signal('SIGKILL');
    await process?.ended;
    // One that was started, and not written down.
    killStrays(exportName(id));
  }

  /** Sparse; one that is there only grows. */
  #make(id: string, sizeBytes: number): void {
    const file = this.#path(id, 'disk.raw');
    const fd = openSync(file, existsSync(file) ? 'r+' : 'w+', 0o600);
    if (fstatSync(fd).size < sizeBytes) ftruncateSync(fd, sizeBytes);
    fsyncSync(fd);
    closeSync(fd);
    const { uid } = this.#options;
    if (uid !== undefined) chownSync(file, uid, uid);
  }

  async #export(id: string, epoch: number, portBefore: number | undefined): Promise<number> {
    const { launcher, address, uid } = this.#options;
    const port = await freePort(address, portBefore);
    const logFile = this.#path(id, 'log');
    const process = await launcher.launch({
      name: `porthole-disk-${id}-${epoch}`,
      description: `Porthole: network disk of ${id}`,
      // One client at a time; a QEMU that boots anew is another.
      command: [
        'qemu-nbd',
        '--persistent',
        '--shared=1',
        '--format=raw',
        '--discard=unmap',
        `--object=tls-creds-psk,id=tls,endpoint=server,dir=${this.#path(id, 'key')}`,
        '--tls-creds=tls',
        `--bind=${address}`,
        `--port=${port}`,
        exportName(id),
        this.#path(id, 'disk.raw'),
      ],
      limits: { memoryBytes: 256 * 1024 * 1024, processes: 96, openFiles: 256 },
      logFile,
      ...(uid !== undefined && { uid }),
    });
    this.#open.set(id, process);
    const deadline = performance.now() + readyWithinMs;
    while (!(await answers(address, port))) {
      process.look();
      if (!process.alive || performance.now() > deadline) {
        await this.#end(id, process);
        throw new Error(`exporting the disk of ${id} failed: ${lastLine(logFile) || 'qemu-nbd does not answer'}`);
      }
      await pause(lookEveryMs);
    }
    return port;
  }
}

const idOf = (file: string): string => {
  if (!existsSync(file)) {
    writeFileSync(`${file}.new`, `${randomBytes(8).toString('hex')}\n`, { mode: 0o600, flush: true });
    renameSync(`${file}.new`, file);
  }
  return readFileSync(file, 'utf8').trim();
};

/** An argument that no process has but the export of this disk. */
const exportName = (id: string): string => `--export-name=${id}`;

/** The one that is wanted, where it is free. */
const freePort = async (address: string, wanted = 0): Promise<number> => {
  const server = createServer();
  try {
    await once(server.listen(wanted, address), 'listening');
  } catch (error) {
    if (wanted === 0 || (error as NodeJS.ErrnoException).code !== 'EADDRINUSE') throw error;
    return freePort(address);
  }
  const { port } = server.address() as AddressInfo;
  server.close();
  await once(server, 'close');
  return port;
};

const answers = async (address: string, port: number): Promise<boolean> => {
  const socket = connect(port, address);
  try {
    await once(socket, 'connect');
    return true;
  } catch {
    return false;
  } finally {
    socket.destroy();
  }
};
