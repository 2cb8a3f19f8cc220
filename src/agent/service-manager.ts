/** systemd, where it started this process: it is told that we are ready, and keeps descriptors for our successor (sd_notify(3)). */
import { close, duplicate, sendDatagram } from '../sys/index.ts';

const FIRST_FD = 3;

export class ServiceManager {
  readonly #socket: string | undefined;
  /** What it kept of a predecessor, by name. Ours to close. */
  readonly kept: ReadonlyMap<string, number>;

  constructor(environment: Readonly<Record<string, string | undefined>>, pid: number) {
    this.#socket = environment['NOTIFY_SOCKET'];
    const count = environment['LISTEN_PID'] === String(pid) ? Number(environment['LISTEN_FDS']) : 0;
    const names = environment['LISTEN_FDNAMES']?.split(':') ?? [];
    this.kept = new Map(
      Array.from({ length: count > 0 ? count : 0 }, (_, index) => [names[index] ?? '', taken(FIRST_FD + index)]),
    );
  }

  /** Whether there is one that could keep something. */
  get isThere(): boolean {
    return this.#socket !== undefined;
  }

  ready(): void {
    this.#tell('READY=1');
  }

  stopping(): void {
    this.#tell('STOPPING=1');
  }

  /** Keeps a copy of `fd` as `name` until `drop`, or until the service is stopped. False: nobody does. */
  keep(name: string, fd: number): boolean {
    return this.#tell(`FDSTORE=1\nFDNAME=${name}`, [fd]);
  }

  drop(name: string): void {
    this.#tell(`FDSTOREREMOVE=1\nFDNAME=${name}`);
  }

  #tell(words: string, fds: readonly number[] = []): boolean {
    if (this.#socket === undefined) return false;
    return sendDatagram(this.#socket, new TextEncoder().encode(words), fds) >= 0;
  }
}

/** Not for the programs that this process starts. */
const taken = (fd: number): number => {
  const copy = duplicate(fd);
  close(fd);
  return copy;
};
