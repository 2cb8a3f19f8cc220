/** Unsolicited messages to the kernel: `fuse_out_header` with unique 0 and the code in `error`, then the body. */
import type { Change, Node } from '../tree/index.ts';
import * as abi from './abi.ts';
import * as c from './constants.ts';
import type { OpenFile } from './handles.ts';
import { type Inode, isCurrent } from './inodes.ts';
import { REPLY, type SessionState } from './state.ts';

const encoder = new TextEncoder();

function message(code: number, bodyBytes: number): { readonly bytes: Uint8Array; readonly view: DataView } {
  const bytes = new Uint8Array(REPLY + bodyBytes);
  const view = new DataView(bytes.buffer);
  abi.OutHeader.len.set(view, 0, bytes.length);
  abi.OutHeader.error.set(view, 0, code);
  return { bytes, view };
}

/** `data`: drop the cached bytes as well as the attributes. */
export function invalInode(nodeid: number, data: boolean): Uint8Array {
  const { bytes, view } = message(c.FUSE_NOTIFY_INVAL_INODE, abi.NotifyInvalInodeOut.sizeBytes);
  abi.NotifyInvalInodeOut.ino.set(view, REPLY, nodeid);
  abi.NotifyInvalInodeOut.off.set(view, REPLY, data ? 0 : -1);
  return bytes;
}

export function invalEntry(parent: number, name: string): Uint8Array {
  const text = encoder.encode(name);
  const { bytes, view } = message(c.FUSE_NOTIFY_INVAL_ENTRY, abi.NotifyInvalEntryOut.sizeBytes + text.length + 1);
  abi.NotifyInvalEntryOut.parent.set(view, REPLY, parent);
  abi.NotifyInvalEntryOut.namelen.set(view, REPLY, text.length);
  bytes.set(text, REPLY + abi.NotifyInvalEntryOut.sizeBytes);
  return bytes;
}

export function deleted(parent: number, child: number, name: string): Uint8Array {
  const text = encoder.encode(name);
  const { bytes, view } = message(c.FUSE_NOTIFY_DELETE, abi.NotifyDeleteOut.sizeBytes + text.length + 1);
  abi.NotifyDeleteOut.parent.set(view, REPLY, parent);
  abi.NotifyDeleteOut.child.set(view, REPLY, child);
  abi.NotifyDeleteOut.namelen.set(view, REPLY, text.length);
  bytes.set(text, REPLY + abi.NotifyDeleteOut.sizeBytes);
  return bytes;
}

export function pollWakeup(file: OpenFile): Uint8Array {
  const { bytes, view } = message(c.FUSE_NOTIFY_POLL, abi.NotifyPollWakeupOut.sizeBytes);
  view.setUint32(REPLY, file.pollLo, true);
  view.setUint32(REPLY + 4, file.pollHi, true);
  return bytes;
}

/** What one commit makes the kernel drop, of what it holds. */
export function ofChanges(state: SessionState, changes: readonly Change[]): Uint8Array[] {
  const messages: Uint8Array[] = [];
  const directories = new Set<number>();
  for (const change of changes) {
    const node = state.fileSystem.node(change.ino);
    if (node !== undefined) directories.add(node.parentIno);
    const inode = state.inodes.newest(change.ino);
    if (inode === undefined) continue;
    directories.add(inode.parentIno);
    const parent = state.inodes.newest(inode.parentIno);
    if (node === undefined || node.nlink === 0) {
      if (parent !== undefined) messages.push(deleted(parent.nodeid, inode.nodeid, inode.name));
    } else {
      const old = isMoved(inode, node) || isOld(state, inode) || isSharedNoMore(state, inode, node);
      messages.push(...ofChange(inode, parent, old));
      if (!inode.versioned) {
        inode.parentIno = node.parentIno;
        inode.name = node.name;
      }
    }
  }
  for (const ino of directories) {
    const directory = state.inodes.newest(ino);
    if (directory !== undefined) messages.push(invalInode(directory.nodeid, false));
  }
  return messages;
}

const isMoved = (inode: Inode, node: { readonly parentIno: number; readonly name: string }): boolean =>
  inode.parentIno !== node.parentIno || inode.name !== node.name;

/** The kernel took it for what everybody may see, by its name too. */
const isSharedNoMore = (state: SessionState, inode: Inode, node: Node): boolean =>
  inode.caching === 'shared' && state.fileSystem.caching(node) !== 'shared';

function isOld(state: SessionState, inode: Inode): boolean {
  const node = state.fileSystem.node(inode.ino);
  return node === undefined || !isCurrent(inode, node, state.fileSystem.caching(node));
}

/** The dentry goes when it leads to what is no more; a versioned nodeid's bytes never change, others' are dropped. */
function ofChange(inode: Inode, parent: Inode | undefined, old: boolean): Uint8Array[] {
  const messages = [invalInode(inode.nodeid, !inode.versioned)];
  if (old && parent !== undefined) messages.push(invalEntry(parent.nodeid, inode.name));
  return messages;
}
