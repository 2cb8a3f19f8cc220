/** The vhost-user messages that are answered: one row for each, with what it must look like and what answers it. */
import type { BackEnd } from './back-end.ts';
import type { ControlChannel } from './control-channel.ts';
import * as vu from './messages.ts';

/** Regions that ADD_MEM_REG can add. */
export const MAX_MEM_SLOTS = 32;

export const FEATURES_LO =
  ((1 << vu.VIRTIO_RING_F_INDIRECT_DESC) |
    (1 << vu.VIRTIO_RING_F_EVENT_IDX) |
    (1 << vu.VHOST_USER_F_PROTOCOL_FEATURES)) >>>
  0;
export const FEATURES_HI = 1 << (vu.VIRTIO_F_VERSION_1 - 32);
/** Of every device; one with a configuration space offers CONFIG as well. */
export const PROTOCOL_FEATURES = vu.PROTOCOL_F_MQ | vu.PROTOCOL_F_REPLY_ACK | vu.PROTOCOL_F_CONFIGURE_MEM_SLOTS;

/** 0 or a negative errno; of rows that answer with data: the bytes of the answer. */
type Handler = (backEnd: BackEnd, channel: ControlChannel) => number;

/** One message: what it must look like, and what answers it. */
export interface Row {
  readonly code: number;
  readonly name: string;
  readonly payloadBytes: readonly [least: number, most: number];
  readonly fds: readonly [least: number, most: number];
  /** Whether the answer is data, always; otherwise there is an acknowledgement where it was asked for. */
  readonly answersData?: boolean;
  /** Whether descriptors that come with it are of use; default: where `fds` allows any. */
  readonly usesFds?: (payload: DataView) => boolean;
  readonly handler: Handler;
}

const none = [0, 0] as const;
const u64 = [vu.U64.sizeBytes, vu.U64.sizeBytes] as const;
const state = [vu.VringState.sizeBytes, vu.VringState.sizeBytes] as const;
const slot = [vu.SingleMemRegion.sizeBytes, vu.SingleMemRegion.sizeBytes] as const;
const address = [vu.VringAddr.sizeBytes, vu.VringAddr.sizeBytes] as const;
const config = [vu.ConfigHead.sizeBytes, vu.MAX_PAYLOAD_BYTES] as const;
const table = [vu.MemTableHead.sizeBytes, vu.MAX_PAYLOAD_BYTES] as const;
const regions = [0, vu.MEM_TABLE_MAX_REGIONS] as const;
const maybeFd = [0, 1] as const;
const namesFd = (payload: DataView): boolean => (vu.U64.value.lo(payload, 0) & vu.VRING_NO_FD) === 0;

export const answerU64 = (channel: ControlChannel, lo: number, hi = 0): number => {
  channel.replyPayload.setUint32(0, lo, true);
  channel.replyPayload.setUint32(4, hi, true);
  return vu.U64.sizeBytes;
};

/** Every message that is answered. What is missing here was not offered, and is refused. */
export const rows: readonly Row[] = [
  {
    code: vu.GET_FEATURES,
    name: 'GET_FEATURES',
    payloadBytes: none,
    fds: none,
    answersData: true,
    handler: (_, channel) => answerU64(channel, FEATURES_LO, FEATURES_HI),
  },
  {
    code: vu.SET_FEATURES,
    name: 'SET_FEATURES',
    payloadBytes: u64,
    fds: none,
    handler: (backEnd, { payload }) => backEnd.setFeatures(vu.U64.value.lo(payload, 0), vu.U64.value.hi(payload, 0)),
  },
  { code: vu.SET_OWNER, name: 'SET_OWNER', payloadBytes: none, fds: none, handler: () => 0 },
  {
    code: vu.RESET_OWNER,
    name: 'RESET_OWNER',
    payloadBytes: none,
    fds: none,
    handler: (backEnd) => backEnd.resetOwner(),
  },
  {
    code: vu.SET_MEM_TABLE,
    name: 'SET_MEM_TABLE',
    payloadBytes: table,
    fds: regions,
    handler: (backEnd, channel) => backEnd.setMemTable(channel),
  },
  {
    code: vu.SET_VRING_NUM,
    name: 'SET_VRING_NUM',
    payloadBytes: state,
    fds: none,
    handler: (backEnd, { payload }) =>
      backEnd.setVringNum(vu.VringState.index.get(payload, 0), vu.VringState.num.get(payload, 0)),
  },
  {
    code: vu.SET_VRING_ADDR,
    name: 'SET_VRING_ADDR',
    payloadBytes: address,
    fds: none,
    handler: (backEnd, { payload }) => backEnd.setVringAddr(payload),
  },
  {
    code: vu.SET_VRING_BASE,
    name: 'SET_VRING_BASE',
    payloadBytes: state,
    fds: none,
    handler: (backEnd, { payload }) =>
      backEnd.setVringBase(vu.VringState.index.get(payload, 0), vu.VringState.num.get(payload, 0)),
  },
  {
    code: vu.GET_VRING_BASE,
    name: 'GET_VRING_BASE',
    payloadBytes: state,
    fds: none,
    answersData: true,
    handler: (backEnd, channel) => backEnd.getVringBase(channel),
  },
  {
    code: vu.SET_VRING_KICK,
    name: 'SET_VRING_KICK',
    payloadBytes: u64,
    fds: maybeFd,
    usesFds: namesFd,
    handler: (backEnd, channel) => backEnd.setVringKick(channel),
  },
  {
    code: vu.SET_VRING_CALL,
    name: 'SET_VRING_CALL',
    payloadBytes: u64,
    fds: maybeFd,
    usesFds: namesFd,
    handler: (backEnd, channel) => backEnd.setVringFd(channel, 'callFd'),
  },
  {
    code: vu.SET_VRING_ERR,
    name: 'SET_VRING_ERR',
    payloadBytes: u64,
    fds: maybeFd,
    usesFds: namesFd,
    handler: (backEnd, channel) => backEnd.setVringFd(channel, 'errFd'),
  },
  {
    code: vu.GET_PROTOCOL_FEATURES,
    name: 'GET_PROTOCOL_FEATURES',
    payloadBytes: none,
    fds: none,
    answersData: true,
    handler: (backEnd, channel) => answerU64(channel, backEnd.protocolFeatures),
  },
  {
    code: vu.SET_PROTOCOL_FEATURES,
    name: 'SET_PROTOCOL_FEATURES',
    payloadBytes: u64,
    fds: none,
    handler: (backEnd, { payload }) =>
      backEnd.setProtocolFeatures(vu.U64.value.lo(payload, 0), vu.U64.value.hi(payload, 0)),
  },
  {
    code: vu.GET_QUEUE_NUM,
    name: 'GET_QUEUE_NUM',
    payloadBytes: none,
    fds: none,
    answersData: true,
    handler: (backEnd, channel) => answerU64(channel, backEnd.queues.length),
  },
  {
    code: vu.SET_VRING_ENABLE,
    name: 'SET_VRING_ENABLE',
    payloadBytes: state,
    fds: none,
    handler: (backEnd, { payload }) =>
      backEnd.setVringEnable(vu.VringState.index.get(payload, 0), vu.VringState.num.get(payload, 0)),
  },
  {
    code: vu.GET_CONFIG,
    name: 'GET_CONFIG',
    payloadBytes: config,
    fds: none,
    answersData: true,
    handler: (backEnd, channel) => backEnd.getConfig(channel),
  },
  {
    code: vu.GET_MAX_MEM_SLOTS,
    name: 'GET_MAX_MEM_SLOTS',
    payloadBytes: none,
    fds: none,
    answersData: true,
    handler: (_, channel) => answerU64(channel, MAX_MEM_SLOTS),
  },
  {
    code: vu.ADD_MEM_REG,
    name: 'ADD_MEM_REG',
    payloadBytes: slot,
    fds: [1, 1],
    handler: (backEnd, channel) => backEnd.addMemReg(channel),
  },
  {
    code: vu.REM_MEM_REG,
    name: 'REM_MEM_REG',
    payloadBytes: slot,
    fds: maybeFd,
    usesFds: () => false,
    handler: (backEnd, { payload }) => backEnd.remMemReg(payload),
  },
];

export const rowByCode: ReadonlyMap<number, Row> = new Map(rows.map((row) => [row.code, row]));
