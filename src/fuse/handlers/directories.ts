/** OPENDIR, READDIR, READDIRPLUS, RELEASEDIR, FSYNCDIR. A cookie is the index of the entry after it. */
import { type DirectoryEntry, type DirectoryHandle, PENDING } from '../../tree/index.ts';
import { EBADF, EINVAL, EIO, ENFILE } from '../../wire/index.ts';
import * as abi from '../abi.ts';
import { BODY, DIRECTORY_BYTES, REPLY, type SessionState } from '../state.ts';

const ALIGNMENT = 8;
/** Directory entries carry the type without the permission bits: `S_IFMT >> 12`. */
const TYPE_SHIFT = 12;
/** Indices of `.` and `..`, which are no lookups. */
const DOTS = 2;

export function opendir(state: SessionState): number {
  if (state.handles.full) return ENFILE;
  const directory = state.fileSystem.opendir(state.caller, state.inode.ino);
  if (directory === PENDING) return openElsewhere(state);
  if (typeof directory === 'number') return directory;
  opened(state, directory);
  return state.reply(abi.OpenOut.sizeBytes);
}

function opened(state: SessionState, directory: DirectoryHandle): void {
  abi.OpenOut.fh.set(state.out, REPLY, state.handles.addDirectory(directory).fh);
  abi.OpenOut.openFlags.set(state.out, REPLY, 0);
  abi.OpenOut.padding.set(state.out, REPLY, 0);
}

function openElsewhere(state: SessionState): number {
  const { fileSystem, inode } = state;
  const pending = state.later();
  fileSystem.waitOpendir!(state.caller, inode.ino, (errno, directory) => {
    if (errno !== 0 || directory === undefined) return pending.fail(errno === 0 ? EIO : errno);
    if (!pending.live || state.handles.full) {
      fileSystem.releasedir(directory);
      return pending.fail(pending.live ? ENFILE : EIO);
    }
    opened(state, directory);
    return pending.finish(abi.OpenOut.sizeBytes);
  });
  return 0;
}

export const readdir = (state: SessionState): number => list(state, false);
export const readdirplus = (state: SessionState): number => list(state, true);

function list(state: SessionState, plus: boolean): number {
  const { view, fileSystem, caller } = state;
  const open = state.handles.directory(abi.ReadIn.fh.get(view, BODY));
  if (open === undefined) return EBADF;
  const limit = Math.min(abi.ReadIn.size.get(view, BODY), state.room, DIRECTORY_BYTES);
  // Attributes are for those who may look names up; others get the names alone.
  const withNodes = plus && fileSystem.maySearch(caller, open.directory.ino);
  let used = 0;
  let last = '';
  const first = abi.ReadIn.offset.get(view, BODY);
  let index = first;
  for (; ; index++) {
    const entry = fileSystem.entry(caller, open.directory, index);
    if (entry === undefined) break;
    if (plus && index >= DOTS && entry.node === undefined) continue;
    const nameBytes = Buffer.byteLength(entry.name);
    const fixedBytes = plus ? abi.Direntplus.sizeBytes : abi.Dirent.sizeBytes;
    const length = Math.ceil((fixedBytes + nameBytes) / ALIGNMENT) * ALIGNMENT;
    if (used + length > limit) {
      if (used === 0) return EINVAL;
      break;
    }
    const base = REPLY + used;
    state.head.fill(0, base, base + length);
    if (withNodes && index >= DOTS && entry.node !== undefined) entryWithNode(state, base, entry);
    dirent(state, plus ? base + abi.EntryOut.sizeBytes : base, entry, index, nameBytes);
    used += length;
    last = entry.name;
  }
  if (used > 0) state.handles.listed(open, first, index, last);
  return state.reply(used);
}

/** When the kernel holds too many nodeids already, the entry stays zero, which means: look it up when you need it. */
function entryWithNode(state: SessionState, base: number, entry: DirectoryEntry): void {
  if (entry.node !== undefined) state.entry(base, entry.node, state.caller.uid);
}

function dirent(state: SessionState, base: number, entry: DirectoryEntry, index: number, nameBytes: number): void {
  const { out } = state;
  abi.Dirent.ino.set(out, base, entry.ino);
  abi.Dirent.off.set(out, base, index + 1);
  abi.Dirent.namelen.set(out, base, nameBytes);
  abi.Dirent.type.set(out, base, entry.type >>> TYPE_SHIFT);
  state.headText.write(entry.name, base + abi.Dirent.sizeBytes, nameBytes, 'utf8');
}

export function releasedir(state: SessionState): number {
  const open = state.handles.directory(abi.ReleaseIn.fh.get(state.view, BODY));
  if (open === undefined) return state.exchange.isRedone === true ? state.reply(0) : EBADF;
  state.handles.removeDirectory(open);
  state.fileSystem.releasedir(open.directory);
  return state.reply(0);
}

/** Every change of a directory was committed before it was answered. */
export const fsyncdir = (state: SessionState): number =>
  state.handles.directory(abi.FsyncIn.fh.get(state.view, BODY)) === undefined ? EBADF : state.reply(0);
