/** 9P on a port of a guest's vsock: any program of the guest may connect, and only privileged ones may attach. */
import { NinepSession } from '../ninep/index.ts';
import type { TreeFileSystem } from '../tree/index.ts';
import type { VsockListener, VsockStream } from '../virtio/index.ts';
import type { Loop } from './loop.ts';
import { Admission, type NinepPeer } from './ninep-admission.ts';
import { type NinepClient, NinepClients, type NinepPlace } from './ninep-clients.ts';

/** One connection: the stream's own back pressure is the session's. */
class VsockClient implements NinepClient, VsockListener {
  readonly session: NinepSession;
  readonly admission: Admission;
  readonly #stream: VsockStream;
  readonly #fileSystem: TreeFileSystem;
  readonly #onGone: (malformation: string | undefined) => void;
  #isGone = false;

  constructor(
    stream: VsockStream,
    peer: NinepPeer,
    { fileSystem, isUser, uidOfMount, token, onEvent }: NinepPlace,
    onGone: (client: VsockClient, malformation: string | undefined) => void,
  ) {
    this.#stream = stream;
    this.#fileSystem = fileSystem();
    this.#onGone = (malformation) => onGone(this, malformation);
    this.admission = new Admission(peer, token, () => this.close());
    this.session = new NinepSession({
      fileSystem: this.#fileSystem,
      isUser,
      uidOfMount,
      log: (message) => onEvent('broken', message),
      attach: this.admission.attach,
      transport: {
        send: (frame, frameBytes) => stream.write(frame, frameBytes),
        resume: () => stream.resume(),
        close: (reason) => {
          stream.reset();
          this.#gone(reason);
        },
      },
    });
  }

  nextDeadlineMs(): number {
    return this.session.nextDeadlineMs();
  }

  tick(nowMs: number): void {
    this.session.tick(nowMs);
  }

  close(): void {
    this.#stream.reset();
    this.#gone(undefined);
  }

  receive(bytes: Uint8Array): number {
    return this.session.receive(bytes);
  }

  drained(): void {
    this.session.drained();
  }

  ended(): void {
    this.#stream.close();
    this.#gone(undefined);
  }

  closed(): void {
    this.#gone(undefined);
  }

  #gone(malformation: string | undefined): void {
    if (this.#isGone) return;
    this.#isGone = true;
    this.session[Symbol.dispose]();
    this.#fileSystem.close();
    this.#onGone(malformation);
  }
}

/** A service of vsock devices (`VsockServices`). */
export class NinepVsock {
  readonly #place: NinepPlace;
  readonly #loop: Loop;
  readonly #clients: NinepClients;

  constructor(place: NinepPlace, loop: Loop) {
    this.#place = place;
    this.#loop = loop;
    this.#clients = new NinepClients(place.onEvent);
    loop.serve(this.#clients);
  }

  readonly accept = (stream: VsockStream): VsockListener | undefined => {
    const peer: NinepPeer = { kind: 'program', sourcePort: stream.sourcePort };
    const name = `vsock port ${stream.sourcePort} of the guest`;
    if (!this.#clients.hasRoomFor(peer, name)) return undefined;
    const client = new VsockClient(stream, peer, this.#place, (gone, malformation) =>
      this.#clients.remove(gone, malformation),
    );
    this.#clients.add(client, name);
    return client;
  };

  counters(): Iterable<readonly [name: string, value: number]> {
    return this.#clients.counters();
  }

  close(): void {
    this.#loop.unserve(this.#clients);
    this.#clients.close();
  }
}
