/** A 9P client for the bench: frames made beforehand, one blocking socket, nothing looked at but sizes and types. */
import { abi } from '../src/ninep/index.ts';
import { close, connectUnix, read, send } from '../src/sys/index.ts';
import { frame } from '../test/ninep/client.ts';
import type { Sample } from './measure.ts';
import { percentile } from './measure.ts';

const ROOM_BYTES = 256 * 1024;
const MSIZE = 65_536;
const TAG = 1;
const [ROOT, WALKED, OPEN] = [1, 2, 3];
const SIZE_BYTES = 4;

export class BenchClient implements Disposable {
  readonly #fd: number;
  readonly #room = new Uint8Array(new ArrayBuffer(ROOM_BYTES));
  readonly #view = new DataView(this.#room.buffer);
  #held = 0;

  /** Attaches as root to `aname`, and opens `file` for reading. */
  constructor(socket: string, aname: string, file: string) {
    this.#fd = connectUnix(socket);
    if (this.#fd < 0) throw new Error(`connecting to "${socket}" failed with errno ${-this.#fd}`);
    this.#say(frame('Tversion', abi.NOTAG, { msize: MSIZE, version: '9P2000.L' }));
    this.#say(frame('Tattach', TAG, { fid: ROOT, afid: abi.NOFID, nUname: 0, aname, uname: 'root' }));
    this.#say(frame('Twalk', TAG, { fid: ROOT, newfid: OPEN, names: [file] }));
    this.#say(frame('Tlopen', TAG, { fid: OPEN }));
  }

  #send(bytes: Uint8Array): void {
    const sent = send(this.#fd, bytes);
    if (sent !== bytes.length) throw new Error(`sending ${bytes.length} bytes answered ${sent}`);
  }

  /** Waits for one answer at least; returns how many came. */
  #take(): number {
    const got = read(this.#fd, this.#held === 0 ? this.#room : this.#room.subarray(this.#held));
    if (got <= 0) throw new Error(`the server hung up, or reading failed with errno ${-got}`);
    this.#held += got;
    let at = 0;
    let count = 0;
    while (this.#held - at >= SIZE_BYTES && this.#held - at >= this.#view.getUint32(at, true)) {
      if (this.#room[at + SIZE_BYTES] === abi.RLERROR)
        throw new Error(`a request was answered with errno ${this.#view.getUint32(at + abi.Header.sizeBytes, true)}`);
      at += this.#view.getUint32(at, true);
      count++;
    }
    if (at === this.#held) this.#held = 0;
    else {
      this.#room.copyWithin(0, at, this.#held);
      this.#held -= at;
    }
    return count;
  }

  #say(bytes: Uint8Array): void {
    this.#send(bytes);
    while (this.#take() === 0) continue;
  }

  /** How long it takes to send these one after the other, each when the one before is answered. */
  #time(frames: readonly Uint8Array[], rounds: number): Sample {
    const times = new Float64Array(rounds);
    for (let round = 0; round < rounds; round++) {
      const start = performance.now();
      for (const one of frames) this.#say(one);
      times[round] = (performance.now() - start) * 1000;
    }
    times.sort();
    return { n: rounds, p50: percentile(times, 0.5), p99: percentile(times, 0.99) };
  }

  walkGetattr(file: string, rounds: number): Sample {
    const walk = frame('Twalk', TAG, { fid: ROOT, newfid: WALKED, names: [file] });
    const getattr = frame('Tgetattr', TAG, { fid: WALKED, requestMask: abi.GETATTR_BASIC });
    return this.#time([walk, getattr, frame('Tclunk', TAG, { fid: WALKED })], rounds);
  }

  walkOpenReadClunk(file: string, rounds: number): Sample {
    const walk = frame('Twalk', TAG, { fid: ROOT, newfid: WALKED, names: [file] });
    const open = frame('Tlopen', TAG, { fid: WALKED });
    const reading = frame('Tread', TAG, { fid: WALKED, offset: 0, count: 4096 });
    return this.#time([walk, open, reading, frame('Tclunk', TAG, { fid: WALKED })], rounds);
  }

  /** Requests a second with so many of them unanswered at any time. */
  inFlight(what: 'getattr' | 'read', depth: number, requests: number): Sample {
    const fields = what === 'getattr' ? { requestMask: abi.GETATTR_BASIC } : { offset: 0, count: 4096 };
    const name = what === 'getattr' ? 'Tgetattr' : 'Tread';
    // A tag may be used again when it is answered: whichever it was, the next ones are of tags that were not sent lately.
    const frames = Array.from({ length: 2 * depth }, (_, i) => frame(name, TAG + i, { fid: OPEN, ...fields }));
    const batches = new Map<number, Uint8Array>();
    const batch = (first: number, count: number): Uint8Array => {
      const key = first * 2 * depth + count;
      let bytes = batches.get(key);
      if (bytes === undefined) {
        bytes = Buffer.concat(Array.from({ length: count }, (_, i) => frames[(first + i) % frames.length]!));
        batches.set(key, bytes);
      }
      return bytes;
    };
    const start = performance.now();
    let sent = depth;
    this.#send(batch(0, depth));
    for (let answered = 0; answered < requests; ) {
      const count = this.#take();
      answered += count;
      const more = Math.min(count, requests - sent);
      if (more <= 0) continue;
      this.#send(batch(sent % frames.length, more));
      sent += more;
    }
    return { n: requests, p50: requests / ((performance.now() - start) / 1000) };
  }

  [Symbol.dispose](): void {
    close(this.#fd);
  }
}
