/** The packet for the guest that is made at the moment: `headBytes` bytes of `head`, then `payload`. */
import * as abi from './abi.ts';

const { Header, HEADER_BYTES } = abi;

/** Data that goes in one piece with its header: to copy it is cheaper than to hand it over. */
const JOINED_BYTES = 256;

export class OutPacket {
  readonly head = new Uint8Array(new ArrayBuffer(HEADER_BYTES + JOINED_BYTES));
  headBytes = 0;
  payload: Uint8Array | undefined;
  readonly #view = new DataView(this.head.buffer);
  readonly #guestCid: number;

  constructor(guestCid: number) {
    this.#guestCid = guestCid;
  }

  /** Begins another one, without data. Returns what its header can be changed by. */
  begin(hostPort: number, guestPort: number, op: number): DataView {
    const view = this.#view;
    this.headBytes = HEADER_BYTES;
    this.payload = undefined;
    Header.srcCid.set(view, 0, abi.HOST_CID);
    Header.dstCid.set(view, 0, this.#guestCid);
    Header.srcPort.set(view, 0, hostPort);
    Header.dstPort.set(view, 0, guestPort);
    Header.len.set(view, 0, 0);
    Header.type.set(view, 0, abi.TYPE_STREAM);
    Header.op.set(view, 0, op);
    Header.flags.set(view, 0, 0);
    Header.bufAlloc.set(view, 0, 0);
    Header.fwdCnt.set(view, 0, 0);
    return view;
  }

  /** Puts `bytes` bytes of `data` from `start` on into it. */
  carry(data: Uint8Array, start: number, bytes: number): void {
    Header.len.set(this.#view, 0, bytes);
    if (bytes > JOINED_BYTES) {
      this.payload = data.subarray(start, start + bytes);
      return;
    }
    for (let i = 0; i < bytes; i++) this.head[HEADER_BYTES + i] = data[start + i]!;
    this.headBytes += bytes;
  }
}
