/** Treaddir. A cookie is the index of the entry after it, in the listing of when the directory was opened or rewound. */
import { EBADF, EINVAL, ENOTDIR } from '../../wire/index.ts';
import * as abi from '../abi.ts';
import { BODY, type SessionState } from '../state.ts';

/** Directory entries carry the type without the permission bits: `S_IFMT >> 12`. */
const TYPE_SHIFT = 12;

export function readdir(state: SessionState): number {
  const { view, body, out, fid, fileSystem } = state;
  if (fid === undefined) return EBADF;
  const { directory } = fid;
  if (directory === undefined) return fid.isDirectory ? EBADF : ENOTDIR;
  const limit = Math.min(abi.Tread.count.get(view, body), state.room - abi.Count.sizeBytes);
  const start = BODY + abi.Count.sizeBytes;
  let used = 0;
  for (let index = abi.Tread.offset.get(view, body); ; index++) {
    const entry = fileSystem.entry(fid.caller, directory, index);
    if (entry === undefined) break;
    const nameBytes = Buffer.byteLength(entry.name);
    const length = abi.Dirent.sizeBytes + nameBytes;
    if (used + length > limit) {
      if (used === 0) return EINVAL;
      break;
    }
    const at = start + used;
    state.qid(at, entry.ino, entry.type, entry.node?.revision ?? 0);
    abi.Dirent.offset.set(out, at, index + 1);
    abi.Dirent.type.set(out, at, entry.type >>> TYPE_SHIFT);
    abi.Dirent.nameBytes.set(out, at, nameBytes);
    state.headText.write(entry.name, at + abi.Dirent.sizeBytes, nameBytes, 'utf8');
    used += length;
  }
  abi.Count.count.set(out, BODY, used);
  return state.reply(abi.Count.sizeBytes + used);
}
