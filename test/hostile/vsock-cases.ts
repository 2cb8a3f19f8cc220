/** What a hostile guest sends to a vsock device, and what has to come of each. */
import { DESC_INDIRECT, DESC_NEXT, DESC_WRITE } from '../front-end/queue.ts';
import { GUEST_CID, HOST_CID, op, type PacketFields, packetBytes } from '../front-end/vsock-driver.ts';
import type { VsockStage } from '../front-end/vsock-in-process.ts';

/** An echo service answers there. */
export const ECHO_PORT = 5000;
/** A service that takes nothing answers there. */
export const DEAF_PORT = 5001;
/** A service that writes `FLOOD_BYTES` at once answers there. */
export const FLOOD_PORT = 5002;
export const FLOOD_BYTES = 100_000;
/** The guest's ports of connections with the echo that are open before. */
export const VICTIM = 1000;
export const BYSTANDER = 1001;
const NOBODY = 2000;
/** What a connection of the first few may have under way. */
const BUF_ALLOC = 262_144;

export interface VsockCase {
  readonly name: string;
  readonly act: (stage: VsockStage) => void;
  /**
   * `victim`: it is reset. `stranger`: what belongs to no connection is reset. `nothing`: no answer. `answered`: one that is no
   * reset. `broken`: the queue stands still. The victim lives unless it says so.
   */
  readonly expects: 'victim' | 'stranger' | 'nothing' | 'answered' | 'broken';
  /** Whether the victim lives, where that is something else. */
  readonly victimEnds?: boolean;
}

const some = Uint8Array.of(1, 2, 3, 4);
const victim = (fields: PacketFields): PacketFields => ({ srcPort: VICTIM, dstPort: ECHO_PORT, ...fields });
const nobody = (fields: PacketFields): PacketFields => ({ srcPort: NOBODY, dstPort: ECHO_PORT, ...fields });
const sends =
  (fields: PacketFields, data?: Uint8Array) =>
  (stage: VsockStage): void => {
    stage.driver.send(fields, data);
  };
const cases: VsockCase[] = [];
const add = (name: string, expects: VsockCase['expects'], act: VsockCase['act'], victimEnds?: boolean): void => {
  cases.push({ name, expects, act, ...(victimEnds !== undefined && { victimEnds }) });
};

for (const code of [0, 8, 9, 127, 255, 256, 0x7fff, 0xffff]) {
  add(`operation ${code} on a connection`, 'victim', sends(victim({ op: code })));
  add(`operation ${code} on no connection`, 'stranger', sends(nobody({ op: code })));
}
for (const type of [0, 2, 3, 255, 0xffff]) {
  add(`type ${type} asks for a connection`, 'stranger', sends(nobody({ op: op.request, type })));
  add(`type ${type} sends data on a stream`, 'stranger', sends(victim({ type }), some));
  add(`type ${type} resets a stream`, 'nothing', sends(victim({ op: op.rst, type })));
}
for (const len of [0, 3, 5, 43, 65_536, 65_537, 0x7fff_ffff, 0xffff_ffff]) {
  add(`data of 4 bytes that says ${len}`, 'victim', sends(victim({ len }), some));
  add(`data of 4 bytes that says ${len}, of nobody`, 'stranger', sends(nobody({ len }), some));
}
add('data that is missing', 'victim', sends(victim({ len: 1 })));
for (const [name, code] of Object.entries(op)) {
  if (code === op.rw) continue;
  const expects = code === op.rst ? 'nothing' : 'victim';
  add(`${name} with data`, expects, sends(victim({ op: code }), some));
  add(`${name} that claims data`, expects, sends(victim({ op: code, len: 4 })));
}
for (const srcCid of [0, 1, 2, 4, 2 ** 32 + GUEST_CID, 2 ** 53])
  for (const [name, code] of Object.entries(op))
    if (code <= op.rw)
      add(
        `${name} from CID ${srcCid}`,
        'nothing',
        sends(victim({ srcCid, op: code }), code === op.rw ? some : undefined),
      );
for (const dstCid of [0, 1, 3, 4, 2 ** 32 + HOST_CID, 2 ** 53]) {
  add(`a connection to CID ${dstCid}`, 'stranger', sends(nobody({ dstCid, op: op.request })));
  add(`data to CID ${dstCid}`, 'stranger', sends(victim({ dstCid }), some));
  add(`a reset to CID ${dstCid}`, 'nothing', sends(victim({ dstCid, op: op.rst })));
}
for (const dstPort of [0, 1, 1023, 4999, 2 ** 31, 2 ** 32 - 1])
  add(`a connection to port ${dstPort}, where nobody listens`, 'stranger', sends(nobody({ op: op.request, dstPort })));
for (const srcPort of [0, 1, 2 ** 32 - 1])
  add(`a connection from port ${srcPort}`, 'answered', sends(nobody({ op: op.request, srcPort })));
for (const [name, code] of Object.entries(op)) {
  if (code === op.request) continue;
  const expects = code === op.rst ? 'nothing' : 'stranger';
  add(`${name} on no connection`, expects, sends(nobody({ op: code })));
  add(
    `${name} with the ports of a connection in the wrong order`,
    expects,
    sends({ srcPort: ECHO_PORT, dstPort: VICTIM, op: code }),
  );
}
add('a connection that there is already', 'victim', sends(victim({ op: op.request })));
add('an answer that nobody waits for', 'victim', sends(victim({ op: op.response })));
add('a reset', 'nothing', sends(victim({ op: op.rst })), true);
for (const flags of [0, 4, 0x8000_0000, 0xffff_fffc])
  add(`shutdown with flags ${flags}`, 'nothing', sends(victim({ op: op.shutdown, flags })));
for (const flags of [3, 7, 0xffff_ffff])
  add(`shutdown of both with flags ${flags}`, 'victim', sends(victim({ op: op.shutdown, flags })));
add('both halves shut down one by one', 'victim', (stage) => {
  stage.driver.send(victim({ op: op.shutdown, flags: 1 }));
  stage.driver.send(victim({ op: op.shutdown, flags: 2 }));
});
add('data after shutdown', 'victim', (stage) => {
  stage.driver.send(victim({ op: op.shutdown, flags: 2 }));
  stage.driver.send(victim({}), some);
});
add(
  'data after a reset',
  'stranger',
  (stage) => {
    stage.driver.send(victim({ op: op.rst }));
    stage.driver.send(victim({}), some);
  },
  true,
);
add(
  'shutdown after shutdown of both',
  'victim',
  (stage) => {
    stage.driver.send(victim({ op: op.shutdown, flags: 3 }));
    stage.packets();
    stage.driver.send(victim({ op: op.shutdown, flags: 3 }));
  },
  true,
);

// Credit.
for (const fwdCnt of [1, 2 ** 31, 2 ** 32 - 1])
  add(`${fwdCnt} bytes taken of none that were sent`, 'nothing', sends(victim({ op: op.creditUpdate, fwdCnt })), false);
for (const bufAlloc of [0, 1, 2 ** 31, 2 ** 32 - 1])
  add(`room for ${bufAlloc} bytes`, 'nothing', sends(victim({ op: op.creditUpdate, bufAlloc })), false);
const filled = (stage: VsockStage, bytes: number): void => {
  stage.driver.send({ op: op.request, srcPort: NOBODY, dstPort: DEAF_PORT });
  const part = new Uint8Array(65_536);
  for (let left = bytes; left > 0; left -= part.length) {
    stage.driver.send({ srcPort: NOBODY, dstPort: DEAF_PORT }, part.subarray(0, Math.min(left, part.length)));
    stage.pump();
  }
};
add('as much data as there is credit', 'answered', (stage) => filled(stage, BUF_ALLOC));
add('one byte more than there is credit', 'stranger', (stage) => filled(stage, BUF_ALLOC + 1));
add('twice as much as there is credit', 'stranger', (stage) => filled(stage, BUF_ALLOC * 2));
for (const bufAlloc of [0, 1, 100]) {
  add(
    `a service that floods a guest with room for ${bufAlloc}`,
    'answered',
    sends(nobody({ op: op.request, dstPort: FLOOD_PORT, bufAlloc })),
  );
  add(`a guest with room for ${bufAlloc} that says it took 2^32 - 1`, 'answered', (stage) => {
    stage.driver.send(nobody({ op: op.request, dstPort: FLOOD_PORT, bufAlloc }));
    stage.driver.send(nobody({ op: op.creditUpdate, dstPort: FLOOD_PORT, bufAlloc, fwdCnt: 2 ** 32 - 1 }));
  });
}
add('credit asked for a hundred times', 'answered', (stage) => {
  for (let i = 0; i < 100; i++) stage.driver.send(victim({ op: op.creditRequest }));
});

// A connection that the host asked for.
for (const [name, code] of Object.entries(op)) {
  if (code === op.response) continue;
  const expects = code === op.rst ? 'nothing' : 'stranger';
  add(`${name} instead of the answer`, expects, (stage) => {
    const dstPort = asked(stage);
    stage.driver.send({ srcPort: 52, dstPort, op: code });
  });
}
add('an answer that comes twice', 'stranger', (stage) => {
  const dstPort = asked(stage);
  stage.driver.send({ srcPort: 52, dstPort, op: op.response });
  stage.driver.send({ srcPort: 52, dstPort, op: op.response });
});
/** A program of the host asks for port 52 of the guest; its port. */
const asked = (stage: VsockStage): number => {
  stage.device.mux.connect(52, {
    attach: () => undefined,
    take: (_, count) => count,
    give: () => -11,
    isGone: () => false,
    opened: () => undefined,
    endOfGuest: () => undefined,
    guestIsDeaf: () => undefined,
    over: () => undefined,
  });
  return stage.packets()[0]!.fields.srcPort;
};

// Packets that are no packets, and chains that are no chains.
for (const bytes of [1, 8, 16, 40, 43])
  add(`a packet of ${bytes} bytes`, 'nothing', (stage) => {
    stage.driver.sendBytes(packetBytes(victim({})).subarray(0, bytes));
  });

/** Writes descriptors of tx slot 0 as they are and makes them available: address, length, flags, next. */
const chain = (
  stage: VsockStage,
  parts: readonly (readonly [addr: number, length: number, flags: number, next: number])[],
): void => {
  const { tx } = stage.driver;
  const { table, at } = tx.chain(tx.slots - 1);
  for (const [i, [addr, length, flags, next]] of parts.entries()) {
    const word = (at + i) * 4;
    table[word] = addr >>> 0;
    table[word + 1] = Math.floor(addr / 2 ** 32);
    table[word + 2] = length;
    table[word + 3] = flags | ((next < 0 ? next : at + next) << 16);
  }
  tx.addHead(tx.headOf(tx.slots - 1));
  tx.publish();
};
/** Guest address of the request buffer of the last tx slot, which holds a good packet with four bytes of data. */
const good = (stage: VsockStage): number => {
  const { tx } = stage.driver;
  tx.request(tx.slots - 1).set(packetBytes(victim({}), some));
  const { buffersOffset, requestBytes, replyBytes } = tx.layout;
  return stage.driver.front.memory.guestAddrOf(buffersOffset + (tx.slots - 1) * (requestBytes + replyBytes));
};
add('a packet in no memory', 'nothing', (stage) => chain(stage, [[2 ** 45, 48, 0, 0]]));
add('a packet beyond what an address can be', 'nothing', (stage) => chain(stage, [[2 ** 60, 48, 0, 0]]));
add('a packet of length 0', 'nothing', (stage) => chain(stage, [[good(stage), 0, 0, 0]]));
add('a packet of 4 GiB', 'nothing', (stage) => chain(stage, [[good(stage), 0xffff_ffff, 0, 0]]));
add('a packet in memory that may be written', 'nothing', (stage) => chain(stage, [[good(stage), 48, DESC_WRITE, 0]]));
add('a packet before memory that may be written', 'answered', (stage) => {
  const at = good(stage);
  chain(stage, [
    [at, 48, DESC_NEXT, 1],
    [at + 4096, 100, DESC_WRITE, 0],
  ]);
});
add('a packet after memory that may be written', 'nothing', (stage) => {
  const at = good(stage);
  chain(stage, [
    [at + 4096, 100, DESC_WRITE | DESC_NEXT, 1],
    [at, 48, 0, 0],
  ]);
});
add('a header in three parts', 'answered', (stage) => {
  const at = good(stage);
  chain(stage, [
    [at, 1, DESC_NEXT, 1],
    [at + 1, 42, DESC_NEXT, 2],
    [at + 43, 5, 0, 0],
  ]);
});
add('a chain that bites its tail', 'broken', (stage) => {
  const at = good(stage);
  chain(stage, [
    [at, 44, DESC_NEXT, 1],
    [at + 44, 4, DESC_NEXT, 0],
  ]);
});
add('a chain that goes on outside the table', 'broken', (stage) => chain(stage, [[good(stage), 44, DESC_NEXT, -1]]));
add('a packet longer than any', 'nothing', (stage) => {
  const at = good(stage);
  chain(stage, [
    [at, 44, DESC_NEXT, 1],
    [at, 65_537, 0, 0],
  ]);
});
add('an indirect table', 'answered', (stage) =>
  chain(stage, [[indirect(stage, [[good(stage), 48, 0]]), 16, DESC_INDIRECT, 0]]),
);
add('an indirect table within another', 'broken', (stage) =>
  chain(stage, [[indirect(stage, [[good(stage), 16, DESC_INDIRECT]]), 16, DESC_INDIRECT, 0]]),
);
for (const bytes of [0, 8, 15, 17, 16 * 4096])
  add(`an indirect table of ${bytes} bytes`, 'broken', (stage) =>
    chain(stage, [[good(stage), bytes, DESC_INDIRECT, 0]]),
  );
add('an indirect table in no memory', 'broken', (stage) => chain(stage, [[2 ** 45, 16, DESC_INDIRECT, 0]]));
add('an indirect table that goes on', 'broken', (stage) =>
  chain(stage, [[indirect(stage, [[good(stage), 48, 0]]), 16, DESC_INDIRECT | DESC_NEXT, 1]]),
);
add('a head outside the table', 'broken', (stage) => {
  stage.driver.tx.addHead(stage.driver.tx.size);
  stage.driver.tx.publish();
});
add('an index that ran away', 'broken', (stage) => {
  Atomics.store(stage.driver.tx.avail, 1, (stage.driver.tx.availIdx + stage.driver.tx.size + 1) & 0xffff);
  stage.driver.tx.kick();
});
const indirect = (
  stage: VsockStage,
  parts: readonly (readonly [addr: number, length: number, flags: number])[],
): number => {
  const { tx, front } = stage.driver;
  const offset = tx.layout.tablesOffset;
  for (const [i, [addr, length, flags]] of parts.entries())
    new Uint32Array(front.memory.u8.buffer, offset + i * 16, 4).set([
      addr >>> 0,
      Math.floor(addr / 2 ** 32),
      length,
      flags,
    ]);
  return front.memory.guestAddrOf(offset);
};

export const packetCases: readonly VsockCase[] = cases;
