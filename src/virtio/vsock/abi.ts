/** The packets of a virtio socket device, byte by byte (virtio 1.2 §5.10.6; `linux/virtio_vsock.h`). */
import { struct } from '../../wire/index.ts';

/** `struct virtio_vsock_hdr`: stands before the data of every packet. CIDs are opaque halves here. */
export const Header = struct({
  srcCid: 'u64',
  dstCid: 'u64',
  srcPort: 'u32',
  dstPort: 'u32',
  len: 'u32',
  type: 'u16',
  op: 'u16',
  flags: 'u32',
  bufAlloc: 'u32',
  fwdCnt: 'u32',
});
export const HEADER_BYTES = Header.sizeBytes;

/** `struct virtio_vsock_config`: all of the device's configuration space. */
export const Config = struct({ guestCid: 'u64' });

/** Well-known CID of the host. */
export const HOST_CID = 2;
/** The least CID that a guest can have; those below mean something else. */
export const LEAST_GUEST_CID = 3;

export const TYPE_STREAM = 1;
export const TYPE_SEQPACKET = 2;

export const OP_REQUEST = 1;
export const OP_RESPONSE = 2;
export const OP_RST = 3;
export const OP_SHUTDOWN = 4;
export const OP_RW = 5;
export const OP_CREDIT_UPDATE = 6;
export const OP_CREDIT_REQUEST = 7;

/** Flags of SHUTDOWN: its sender will receive, or send, no more. */
export const SHUTDOWN_RECEIVE = 1;
export const SHUTDOWN_SEND = 2;
export const SHUTDOWN_BOTH = SHUTDOWN_RECEIVE | SHUTDOWN_SEND;

/** Linux sends no packet with more data (VIRTIO_VSOCK_MAX_PKT_BUF_SIZE). */
export const MAX_DATA_BYTES = 65_536;
