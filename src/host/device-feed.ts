/**
 * The commits for a device process, over its deaths. A successor is first given the tree as its predecessor saw it last, and then
 * every commit since: what is open there keeps its version, and readers of `/.changes` miss nothing.
 */
import { type Authority, type Delta, Replica } from '../tree/index.ts';

/** What may wait to be applied. Beyond it, what is open may lose its version if the device process dies now. */
const waitingLimits = { commits: 1024, bytes: 64 * 1024 * 1024 } as const;

const bytesOf = (delta: Delta): number => delta.put.reduce((sum, { bytes }) => sum + (bytes?.length ?? 0), 0);

export class DeviceFeed {
  /** As the device process has said to see the tree. */
  readonly #seen = new Replica();
  #waiting: Delta[] = [];
  #waitingBytes = 0;
  #send: ((delta: Delta) => void) | undefined;
  readonly #stop: () => void;

  /** `holder` as in `Authority.subscribe`. */
  constructor(authority: Authority, holder: string) {
    this.#stop = authority.subscribe(holder, (delta) => this.#told(delta));
  }

  /** The revision at which a successor is where the tree stands now. */
  get revision(): number {
    return this.#waiting.at(-1)?.revision ?? this.#seen.snapshot.revision;
  }

  /** Sends what a device process needs from its start on, and every commit from now on. */
  attach(send: (delta: Delta) => void): void {
    const { snapshot, policy, usage } = this.#seen;
    const { revision } = snapshot;
    const put = [...snapshot.nodes.values()];
    send({ revision, full: true, put, remove: [], policy: policy.spec, changes: [], usage });
    for (const delta of [...this.#waiting]) send(delta);
    this.#send = send;
  }

  detach(): void {
    this.#send = undefined;
  }

  /** The device process has applied everything up to this revision. */
  applied(revision: number): void {
    while (this.#waiting.length > 0 && this.#waiting[0]!.revision <= revision) this.#see(this.#waiting.shift()!);
  }

  #told(delta: Delta): void {
    this.#waiting.push(delta);
    this.#waitingBytes += bytesOf(delta);
    if (this.#seen.snapshot.revision === 0) this.applied(delta.revision);
    this.#send?.(delta);
    while (this.#waiting.length > waitingLimits.commits || this.#waitingBytes > waitingLimits.bytes)
      this.#see(this.#waiting.shift()!);
  }

  #see(delta: Delta): void {
    this.#waitingBytes -= bytesOf(delta);
    this.#seen.apply(delta);
  }

  close(): void {
    this.#stop();
  }
}
