/** The server's side of the agent's file system: decisions, values and changes, asked in the name of who asks here. */
import type { NumberedUpstream } from '../device/index.ts';
import type { Caller, Done, Fetched, Mutation, Outcome, Replica, Settle } from '../tree/index.ts';
import * as wire from '../wire/index.ts';
import { EBUSY, EINVAL, EIO, RENAME_EXCHANGE, RENAME_NOREPLACE } from '../wire/index.ts';
import { AgentError } from './agent-error.ts';
import { Drops } from './drops.ts';
import type { ServerClient } from './server-client.ts';
import { bytesOf } from './told-tree.ts';
import { Turns } from './turns.ts';

const MIB = 1024 * 1024;
const VALUE_BYTES = MIB;
/** A change whose answer was lost is asked for again for so long: whether it took effect has to be known. */
const CERTAINTY_MS = 5_000;
const RETRY_MS = 50;
/**
 * A quarter for one uid, as of every limit: what it asks beyond that waits for its own, and others go past it. Bytes are those of
 * what is to be written: machines are small, and what fills them up has other processes killed.
 */
const asking = { atOnce: 32, atOnceOfUid: 8, waitingOfUid: 192, bytes: 32 * MIB, bytesOfUid: 8 * MIB } as const;
/** Whose turns drops take, which nobody asks for: no uid's. */
const DROPS = -1;
/** How long the replica has to come to a commit that the server has answered. */
const APPLY_MS = 10_000;

export interface RemoteOptions {
  readonly client: ServerClient;
  readonly replica: Replica;
  readonly token: () => string | undefined;
  readonly onTokenInvalid: (token: string) => void;
  /** Counts up over all processes of this boot. */
  readonly nextSequence: () => number;
  /** Of a request; then EIO. */
  readonly askMs: number;
  /** How long a request waits for a server that is away. */
  readonly waitMs: number;
}

interface Asking {
  /** Once it may have arrived, only the same boot may be asked again. */
  readonly changes?: boolean;
  readonly attempts?: number;
  /** Of what is to be written. */
  readonly bytes?: number;
}

/** As the native API takes it. */
export interface Question {
  readonly caller?: Caller;
  readonly [name: string]: unknown;
}

/** The answer's body, or an errno. */
export type Answer = Readonly<Record<string, unknown>> | number;

const errnos: ReadonlyMap<string, number> = new Map(
  Object.entries(wire).flatMap(([name, value]) =>
    /^E[A-Z0-9]+$/.test(name) && typeof value === 'number' ? [[name, value]] : [],
  ),
);

export class Remote implements NumberedUpstream {
  readonly #options: RemoteOptions;
  readonly #turns = new Turns(asking);
  readonly #drops = new Drops((ino) => this.#ask('forget', { node: ino }));
  readonly #waiting = new Set<{
    readonly revision: number;
    readonly done: () => void;
    readonly timer: NodeJS.Timeout;
  }>();
  #hasLeft = false;

  constructor(options: RemoteOptions) {
    this.#options = options;
  }

  /** Asks for what may be asked any number of times. */
  ask(operation: string, input: Question, then: (answer: Answer) => void): void {
    void this.#deliver(this.#ask(operation, input), then);
  }

  async #deliver(answer: Promise<Answer>, then: (answer: Answer) => void): Promise<void> {
    const got = await answer;
    if (!this.#hasLeft) then(got);
  }

  submit(mutation: Mutation, settle: Settle, given = 0, sending: (sequence: number) => void = () => {}): void {
    const refuse = (errno: number): void => settle({ errno, revision: 0, ino: 0 });
    if (mutation.op === 'drop') return this.#drops.add(mutation.ino, refuse);
    if (mutation.op === 'burn') return this.#burn(mutation.caller, mutation.ino, settle);
    const asked = requestOf(mutation);
    if (typeof asked === 'number') return refuse(asked);
    const { operation, input } = asked;
    const sequence = given || this.#options.nextSequence();
    sending(sequence);
    const change = { changes: true, bytes: bytesIn(mutation) };
    void this.#deliver(this.#ask(operation, { ...input, sequence }, change), (answer) => {
      if (typeof answer === 'number') return refuse(answer);
      const { revision, ino } = answer;
      if (!Number.isSafeInteger(revision) || !Number.isSafeInteger(ino)) return refuse(EIO);
      const outcome: Outcome = { errno: 0, revision: revision as number, ino: ino as number };
      return this.whenApplied(outcome.revision, () => settle(outcome));
    });
  }

  fetch(opener: Caller, ino: number, done: Done<Fetched>): void {
    const input = { caller: { ...opener }, node: ino, offset: 0, size: VALUE_BYTES, opened: true };
    this.ask('read', input, (answer) => {
      const found = typeof answer === 'number' ? answer : fetchedOf(answer);
      if (typeof found === 'number') done(found, undefined);
      else done(0, found);
    });
  }

  /** Calls `done` when the replica has come to a revision, or does not come to it. */
  whenApplied(revision: number, done: () => void): void {
    if (this.#options.replica.snapshot.revision >= revision) return done();
    const waiter = {
      revision,
      done,
      timer: setTimeout(() => {
        this.#waiting.delete(waiter);
        done();
      }, APPLY_MS),
    };
    // An agent that ends waits for nothing any more.
    waiter.timer.unref();
    this.#waiting.add(waiter);
  }

  /** Who waits is answered by a successor: nothing is delivered here any more. */
  leave(): void {
    this.#hasLeft = true;
    this.#drops.stop();
    for (const { timer } of this.#waiting) clearTimeout(timer);
    this.#waiting.clear();
  }

  /** The replica has come to another revision. */
  applied(): void {
    const { revision } = this.#options.replica.snapshot;
    for (const waiter of [...this.#waiting]) {
      if (waiter.revision > revision) continue;
      this.#waiting.delete(waiter);
      clearTimeout(waiter.timer);
      waiter.done();
    }
  }

  #burn(caller: Caller, ino: number, settle: Settle): void {
    const input = { caller: { ...caller }, node: ino, offset: 0, size: VALUE_BYTES };
    void this.#deliver(this.#ask('read', input, { changes: true, attempts: 1 }), (answer) => {
      const found = typeof answer === 'number' ? answer : fetchedOf(answer);
      if (typeof found === 'number') settle({ errno: found, revision: 0, ino: 0 });
      else settle({ errno: 0, revision: found.dataRevision, ino: 0, bytes: found.bytes });
    });
  }

  /** `input` stays as it is until there is an answer. Never rejects. */
  async #ask(operation: string, input: Question, how: Asking = {}): Promise<Answer> {
    const turn = this.#turns.take(input.caller?.uid ?? DROPS, how.bytes);
    if (turn === undefined) return EBUSY;
    // What waited here would be sent in Node's next turn only, and nobody has told the loop to give it one.
    const end = typeof turn === 'function' ? turn : await turn;
    try {
      return await this.#askNow(operation, input, how);
    } finally {
      end();
    }
  }

  async #askNow(
    operation: string,
    input: Question,
    { changes = false, attempts = Number.POSITIVE_INFINITY }: Asking,
  ): Promise<Answer> {
    const { client, token, onTokenInvalid, askMs, waitMs } = this.#options;
    const start = performance.now();
    let sentUnder: string | undefined;
    for (let attempt = 1; attempt <= attempts; attempt++) {
      const current = token();
      let givenMs = waitMs;
      if (current !== undefined && (sentUnder === undefined || sentUnder === current)) {
        try {
          const { status, body } = await client.ask('POST', operation, input, { token: current, withinMs: askMs });
          const answer = answerOf(status, body);
          if (answer !== undefined) return answer;
          if (status === 401) onTokenInvalid(current);
          // It is there, and has too much to do: or this uid asks too much of it.
          else givenMs = Math.max(waitMs, askMs);
        } catch (error) {
          const isSent = error instanceof AgentError && error.code !== 'SERVER_UNREACHED';
          if (isSent && changes) sentUnder = current;
          // A connection that was kept may have been closed by the server meanwhile.
          if (isSent) givenMs = changes ? CERTAINTY_MS : attempt === 1 ? Number.POSITIVE_INFINITY : waitMs;
        }
      } else if (sentUnder !== undefined) return EIO;
      if (performance.now() - start >= (sentUnder === undefined ? givenMs : Math.max(givenMs, CERTAINTY_MS)))
        return EIO;
      await new Promise((resolve) => {
        setTimeout(resolve, RETRY_MS).unref();
      });
    }
    return EIO;
  }
}

/** Undefined: it was not answered, and may be asked again. */
const answerOf = (status: number, body: unknown): Answer | undefined => {
  const told = typeof body === 'object' && body !== null ? (body as Readonly<Record<string, unknown>>) : undefined;
  if (status === 200) return told ?? EIO;
  if (typeof told?.['errno'] === 'string') return errnos.get(told['errno']) ?? EIO;
  // Too many requests, the server ends, or the token is not its own.
  return status === 429 || status === 503 || status === 401 ? undefined : EIO;
};

export const fetchedOf = (answer: Readonly<Record<string, unknown>>): Fetched | number => {
  const { bytes, revision } = answer;
  if (typeof bytes !== 'string' || !Number.isSafeInteger(revision)) return EIO;
  return { bytes: bytesOf(bytes), dataRevision: revision as number };
};

/** Text only when it is sent: what waits takes no more than its bytes. */
class Base64 {
  readonly #bytes: Uint8Array;

  constructor(bytes: Uint8Array) {
    this.#bytes = bytes;
  }

  toJSON(): string {
    const { buffer, byteOffset, byteLength } = this.#bytes;
    return Buffer.from(buffer, byteOffset, byteLength).toString('base64');
  }
}

const bytesIn = (mutation: Mutation): number =>
  mutation.op === 'write' ? mutation.data.length : mutation.op === 'setxattr' ? mutation.value.length : 0;

const timeOf = (time: 'now' | { readonly sec: number; readonly nsec: number }) =>
  time === 'now' ? time : [time.sec, time.nsec];

/** An errno where the native API can't take it. */
const requestOf = (
  mutation: Exclude<Mutation, { readonly op: 'burn' | 'drop' }>,
): { readonly operation: string; readonly input: Question } | number => {
  const caller = { ...mutation.caller };
  switch (mutation.op) {
    case 'create':
    case 'mkdir': {
      const { parentIno: directory, name, mode, umask } = mutation;
      return { operation: mutation.op, input: { caller, directory, name, mode, umask } };
    }
    case 'symlink': {
      const { parentIno: directory, name } = mutation;
      try {
        const target = new TextDecoder('utf-8', { fatal: true, ignoreBOM: true }).decode(mutation.target);
        return { operation: 'symlink', input: { caller, directory, name, target } };
      } catch {
        return EINVAL;
      }
    }
    case 'unlink':
    case 'rmdir': {
      const { parentIno: directory, name } = mutation;
      return { operation: mutation.op === 'unlink' ? 'delete' : 'rmdir', input: { caller, directory, name } };
    }
    case 'rename': {
      const { parentIno: directory, name, newParentIno: toDirectory, newName: toName, flags } = mutation;
      const exchange = (flags & RENAME_EXCHANGE) !== 0;
      const noReplace = (flags & RENAME_NOREPLACE) !== 0;
      return { operation: 'rename', input: { caller, directory, name, toDirectory, toName, exchange, noReplace } };
    }
    case 'write': {
      const { ino: node, offset, data, append, truncate, grantedAtOpen: opened } = mutation;
      return { operation: 'write', input: { caller, node, offset, bytes: new Base64(data), append, truncate, opened } };
    }
    case 'truncate': {
      const { ino: node, sizeBytes: size, grantedAtOpen: opened } = mutation;
      return { operation: 'truncate', input: { caller, node, size, opened } };
    }
    case 'setattr': {
      const { ino: node, mode, uid, gid, atime, mtime } = mutation;
      const times = { ...(atime && { atime: timeOf(atime) }), ...(mtime && { mtime: timeOf(mtime) }) };
      return { operation: 'setattr', input: { caller, node, mode, uid, gid, ...times } };
    }
    case 'setxattr': {
      const { ino: node, name, value, flags } = mutation;
      return { operation: 'setxattr', input: { caller, node, name, bytes: new Base64(value), flags } };
    }
    case 'removexattr':
      return { operation: 'removexattr', input: { caller, node: mutation.ino, name: mutation.name } };
  }
};
