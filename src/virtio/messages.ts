/** The vhost-user messages that this room speaks, byte by byte (QEMU docs/interop/vhost-user.rst). Both halves use them. */
import { struct } from '../wire/index.ts';

/** Stands before every message; `size` counts the payload only. */
export const MessageHeader = struct({ request: 'u32', flags: 'u32', size: 'u32' });

export const VERSION = 1;
export const VERSION_MASK = 3;
export const FLAG_REPLY = 4;
export const FLAG_NEED_REPLY = 8;

/** Request codes of the front end. */
export const GET_FEATURES = 1;
export const SET_FEATURES = 2;
export const SET_OWNER = 3;
export const RESET_OWNER = 4;
export const SET_MEM_TABLE = 5;
export const SET_VRING_NUM = 8;
export const SET_VRING_ADDR = 9;
export const SET_VRING_BASE = 10;
export const GET_VRING_BASE = 11;
export const SET_VRING_KICK = 12;
export const SET_VRING_CALL = 13;
export const SET_VRING_ERR = 14;
export const GET_PROTOCOL_FEATURES = 15;
export const SET_PROTOCOL_FEATURES = 16;
export const GET_QUEUE_NUM = 17;
export const SET_VRING_ENABLE = 18;
export const GET_CONFIG = 24;
export const GET_MAX_MEM_SLOTS = 36;
export const ADD_MEM_REG = 37;
export const REM_MEM_REG = 38;

/** A bit set of 64, or a number. Feature bits are taken as two halves: a number holds 53 bits. */
export const U64 = struct({ value: 'u64' });
/** `struct vhost_vring_state` */
export const VringState = struct({ index: 'u32', num: 'u32' });
/** `struct vhost_vring_addr`: front-end user addresses, but `log` */
export const VringAddr = struct({ index: 'u32', flags: 'u32', desc: 'u64', used: 'u64', avail: 'u64', log: 'u64' });
/** Stands before the regions of SET_MEM_TABLE. */
export const MemTableHead = struct({ nregions: 'u32', padding: 'u32' });
/** `VhostUserMemoryRegion` */
export const MemRegion = struct({
  guestPhysAddr: 'u64',
  memorySize: 'u64',
  userspaceAddr: 'u64',
  mmapOffset: 'u64',
});
/** Payload of ADD_MEM_REG and REM_MEM_REG. */
export const SingleMemRegion = struct({
  padding: 'u64',
  guestPhysAddr: 'u64',
  memorySize: 'u64',
  userspaceAddr: 'u64',
  mmapOffset: 'u64',
});

/** Stands before the bytes of GET_CONFIG (`VhostUserConfig`). */
export const ConfigHead = struct({ offset: 'u32', size: 'u32', flags: 'u32' });
/** Configuration spaces here have no more bytes. */
export const MAX_CONFIG_BYTES = 32;

/** SET_VRING_KICK, CALL and ERR: the queue in bits 0 to 7, and whether no descriptor comes with it. */
export const VRING_INDEX_MASK = 0xff;
export const VRING_NO_FD = 0x100;

/** SET_MEM_TABLE carries at most this many regions (VHOST_MEMORY_BASELINE_NREGIONS). */
export const MEM_TABLE_MAX_REGIONS = 8;

/** Feature bits, as bit numbers. */
export const VIRTIO_RING_F_INDIRECT_DESC = 28;
export const VIRTIO_RING_F_EVENT_IDX = 29;
export const VHOST_USER_F_PROTOCOL_FEATURES = 30;
export const VIRTIO_F_VERSION_1 = 32;

/** Protocol feature bits, as masks. */
export const PROTOCOL_F_MQ = 1 << 0;
export const PROTOCOL_F_REPLY_ACK = 1 << 3;
export const PROTOCOL_F_CONFIG = 1 << 9;
export const PROTOCOL_F_CONFIGURE_MEM_SLOTS = 1 << 15;

/** The payload of the largest message: SET_MEM_TABLE with all its regions. */
export const MAX_PAYLOAD_BYTES = MemTableHead.sizeBytes + MEM_TABLE_MAX_REGIONS * MemRegion.sizeBytes;
