/** INIT, DESTROY, FORGET, BATCH_FORGET, INTERRUPT. */
import { EINVAL, EPROTO } from '../../wire/index.ts';
import * as abi from '../abi.ts';
import { FUSE_INT_REQ_BIT } from '../constants.ts';
import { bitOf } from '../init-flags.ts';
import { BODY, REPLY, type SessionState } from '../state.ts';

/** Of one WRITE, and of every READ's answer: the longest value there is. */
export const MAX_WRITE_BYTES = 1024 * 1024;
const MAX_PAGES = 256;
const MAX_BACKGROUND = 64;
const CONGESTION_THRESHOLD = 48;
const TIME_GRANULARITY_NS = 1;
/** 7.31 is Linux 5.4, the first with virtiofs. */
const OLDEST_MINOR = 31;

const ATOMIC_O_TRUNC = 1 << bitOf('ATOMIC_O_TRUNC');
const INIT_EXT = 1 << bitOf('INIT_EXT');

/** Starts a new life of the session. A kernel that can't be served gets EPROTO, and the log says why. */
export function init(state: SessionState): number {
  const { view, taken } = state;
  const major = abi.InitIn.major.get(view, BODY);
  const minor = abi.InitIn.minor.get(view, BODY);
  if (major > abi.FUSE_KERNEL_VERSION) {
    state.head.fill(0, REPLY, REPLY + abi.InitOut.sizeBytes);
    abi.InitOut.major.set(state.out, REPLY, abi.FUSE_KERNEL_VERSION);
    abi.InitOut.minor.set(state.out, REPLY, abi.FUSE_KERNEL_MINOR_VERSION);
    return state.reply(abi.InitOut.sizeBytes);
  }
  if (major < abi.FUSE_KERNEL_VERSION || minor < OLDEST_MINOR) {
    state.log(
      `the kernel speaks FUSE ${major}.${minor}; ${abi.FUSE_KERNEL_VERSION}.${OLDEST_MINOR} (Linux 5.4) is needed`,
    );
    return EPROTO;
  }
  const offeredLo = abi.InitIn.flags.get(view, BODY);
  if ((offeredLo & ATOMIC_O_TRUNC) === 0) {
    state.log('the kernel does not offer FUSE_ATOMIC_O_TRUNC, without which ">" is no atomic replacement');
    return EPROTO;
  }
  const extended =
    (offeredLo & INIT_EXT) !== 0 && state.end >= BODY + abi.InitIn.flags2.offset + abi.InitIn.flags2.size;
  const offeredHi = extended ? abi.InitIn.flags2.get(view, BODY) : 0;
  const readahead = abi.InitIn.maxReadahead.get(view, BODY);

  state.forgetEverything(true);
  state.initialized = true;
  const { out } = state;
  state.head.fill(0, REPLY, REPLY + abi.InitOut.sizeBytes);
  abi.InitOut.major.set(out, REPLY, abi.FUSE_KERNEL_VERSION);
  abi.InitOut.minor.set(out, REPLY, Math.min(minor, abi.FUSE_KERNEL_MINOR_VERSION));
  abi.InitOut.maxReadahead.set(out, REPLY, Math.min(readahead, MAX_WRITE_BYTES));
  abi.InitOut.flags.set(out, REPLY, (offeredLo & taken.lo) >>> 0);
  abi.InitOut.maxBackground.set(out, REPLY, MAX_BACKGROUND);
  abi.InitOut.congestionThreshold.set(out, REPLY, CONGESTION_THRESHOLD);
  abi.InitOut.maxWrite.set(out, REPLY, MAX_WRITE_BYTES);
  abi.InitOut.timeGran.set(out, REPLY, TIME_GRANULARITY_NS);
  abi.InitOut.maxPages.set(out, REPLY, MAX_PAGES);
  abi.InitOut.flags2.set(out, REPLY, (offeredHi & taken.hi) >>> 0);
  return state.reply(abi.InitOut.sizeBytes);
}

export function destroy(state: SessionState): number {
  state.forgetEverything(true);
  state.initialized = false;
  return state.reply(0);
}

/** One that was taken before may have been counted before: what is given up too late does no harm. */
export function forget(state: SessionState): number {
  if (state.exchange.isRedone === true) return state.noReply();
  state.inodes.forget(state.nodeid, abi.ForgetIn.nlookup.get(state.view, BODY));
  return state.noReply();
}

export function batchForget(state: SessionState): number {
  const count = abi.BatchForgetIn.count.get(state.view, BODY);
  const first = BODY + abi.BatchForgetIn.sizeBytes;
  if (first + count * abi.ForgetOne.sizeBytes > state.end) return EINVAL;
  if (state.exchange.isRedone === true) return state.noReply();
  for (let index = 0; index < count; index++) {
    const at = first + index * abi.ForgetOne.sizeBytes;
    state.inodes.forget(abi.ForgetOne.nodeid.get(state.view, at), abi.ForgetOne.nlookup.get(state.view, at));
  }
  return state.noReply();
}

/**
 * Ends a read that waits with EINTR. The interrupted request may not have come yet, or be answered already: which one can't
 * be told apart, so it is remembered for a while.
 */
export function interrupt(state: SessionState): number {
  const unique = abi.InterruptIn.unique.get(state.view, BODY);
  const target = unique % 2 === FUSE_INT_REQ_BIT ? unique - FUSE_INT_REQ_BIT : unique;
  const waiting = state.waits.get(target);
  if (waiting === undefined) state.rememberInterrupt(target);
  else waiting.cancel();
  return state.noReply();
}
