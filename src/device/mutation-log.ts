/**
 * Mutations in flight, noted down before they are sent. A successor that does a request again submits the same mutations in the
 * same order; each of them that was sent goes out under the number that it had, so that the host daemon applies none twice.
 */
import type { Mutation, Outcome, Settle, Upstream } from '../tree/index.ts';
import type { Journal } from './journal.ts';
import { mutation as fields, MUTATION } from './journal-records.ts';

const SENT = 1;
const ANSWERED = 2;

/** The link, as the log drives it. */
export interface NumberedUpstream {
  /**
   * Sends under `sequence`, or, where that is 0, under a new number; `sending` is told of it before anything leaves. Reads
   * `mutation` during the call only.
   */
  submit(mutation: Mutation, settle: Settle, sequence?: number, sending?: (sequence: number) => void): void;
}

/** A request that has sent mutations. */
interface Request {
  readonly where: number;
  readonly order: number;
  /** How many it has submitted. */
  submitted: number;
}

/** What is noted of one mutation. */
export interface Noted {
  readonly payload: number;
  readonly sequence: number;
  /** Undefined: it was sent, and what came of it is not known here. */
  readonly outcome: Outcome | undefined;
}

const keyOf = (where: number, order: number, ordinal: number): string => `${where} ${order} ${ordinal}`;

export class MutationLog {
  readonly #journal: Journal;
  readonly #orderOf: (where: number) => number;
  /** What a predecessor noted, by request and ordinal, until the request is done again. */
  readonly #left = new Map<string, Noted>();
  /** Payloads by the request's place. */
  readonly #noted = new Map<number, number[]>();
  /** Those whose answer stands in a ring. */
  #answered: number[] = [];
  #where = -1;
  #request: Request | undefined;

  constructor(journal: Journal, orderOf: (where: number) => number) {
    this.#journal = journal;
    this.#orderOf = orderOf;
  }

  // --- which request is at hand ---

  begins(where: number): void {
    this.#where = where;
    this.#request = undefined;
  }

  ends(): void {
    this.#where = -1;
    this.#request = undefined;
  }

  #current(): Request | undefined {
    if (this.#request === undefined && this.#where >= 0)
      this.#request = { where: this.#where, order: this.#orderOf(this.#where), submitted: 0 };
    return this.#request;
  }

  /** The request is being answered: once its answer is shown, nobody will ask for its mutations again. */
  gives(where: number): void {
    if (this.#noted.size === 0) return;
    const noted = this.#noted.get(where);
    if (noted === undefined) return;
    this.#noted.delete(where);
    this.#answered = this.#answered.length === 0 ? noted : [...this.#answered, ...noted];
  }

  shown(): void {
    if (this.#answered.length === 0) return;
    for (const payload of this.#answered) this.#journal.free(payload);
    this.#answered = [];
  }

  /** Every block is gone. */
  wipe(): void {
    this.#left.clear();
    this.#noted.clear();
    this.#answered = [];
  }

  // --- mutations ---

  upstream(link: NumberedUpstream): Upstream {
    return {
      isResumed: () => {
        const request = this.#left.size === 0 ? undefined : this.#current();
        return request !== undefined && this.#left.has(keyOf(request.where, request.order, request.submitted));
      },
      submit: (mutation, settle) => {
        const request = this.#current();
        // To drop a node twice is the same as once, and it is looked for what is to be dropped after every start.
        if (request === undefined || mutation.op === 'drop') return link.submit(mutation, settle);
        const ordinal = request.submitted++;
        const key = this.#left.size === 0 ? '' : keyOf(request.where, request.order, ordinal);
        const left = this.#left.get(key);
        this.#left.delete(key);
        if (left?.outcome !== undefined) {
          this.#note(request.where, left.payload);
          return settle(left.outcome);
        }
        const { life } = this.#journal;
        let payload = left?.payload ?? 0;
        if (left !== undefined) this.#note(request.where, payload);
        const sending = (sequence: number): void => {
          if (payload === 0 && life === this.#journal.life) payload = this.#write(request, ordinal, sequence);
        };
        const settled: Settle = (outcome) => {
          // A value that was burnt stands with its handle; who asks again for want of it is given it again.
          if (payload !== 0 && life === this.#journal.life && mutation.op !== 'burn') this.#answer(payload, outcome);
          const before = this.#request;
          this.#request = request;
          settle(outcome);
          this.#request = before;
        };
        link.submit(mutation, settled, left?.sequence ?? 0, sending);
      },
    };
  }

  #note(where: number, payload: number): void {
    const noted = this.#noted.get(where);
    if (noted === undefined) this.#noted.set(where, [payload]);
    else noted.push(payload);
  }

  #write({ where, order }: Request, ordinal: number, sequence: number): number {
    const journal = this.#journal;
    const payload = journal.allocate(fields.sizeBytes);
    if (payload === 0) return 0;
    const { f64, u32 } = journal.memory;
    f64[(payload + fields.sequence) / 8] = sequence;
    f64[(payload + fields.order) / 8] = order;
    u32[(payload + fields.whereW) / 4] = where;
    u32[(payload + fields.ordinalW) / 4] = ordinal;
    u32[(payload + fields.stateW) / 4] = SENT;
    journal.commit(payload, MUTATION);
    this.#note(where, payload);
    return payload;
  }

  #answer(payload: number, { errno, ino, revision }: Outcome): void {
    const { f64, u32 } = this.#journal.memory;
    f64[(payload + fields.ino) / 8] = ino;
    f64[(payload + fields.revision) / 8] = revision;
    u32[(payload + fields.errnoW) / 4] = errno;
    u32[(payload + fields.stateW) / 4] = ANSWERED;
  }

  /** Takes up what a predecessor noted; what belongs to no request in flight is forgotten. */
  recover(payload: number, isInFlight: (where: number, order: number) => boolean): void {
    const { f64, u32 } = this.#journal.memory;
    const number = (field: number): number => f64[(payload + field) / 8]!;
    const word = (field: number): number => u32[(payload + field) / 4]!;
    const [sequence, order] = [number(fields.sequence), number(fields.order)];
    const [where, ordinal] = [word(fields.whereW), word(fields.ordinalW)];
    const isSane = Number.isSafeInteger(sequence) && sequence > 0 && Number.isSafeInteger(order);
    if (!isSane || !isInFlight(where, order)) return this.#journal.free(payload);
    const outcome =
      word(fields.stateW) === ANSWERED
        ? { errno: word(fields.errnoW), revision: number(fields.revision), ino: number(fields.ino) }
        : undefined;
    this.#left.set(keyOf(where, order, ordinal), { payload, sequence, outcome });
  }
}
