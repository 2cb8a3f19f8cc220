/** An ACL as setxattr(2) takes it (linux/posix_acl_xattr.h), written down here a second time, apart from what it tests. */
interface AclText {
  readonly userObj: number;
  readonly groupObj: number;
  readonly other: number;
  readonly mask?: number;
  readonly users?: Readonly<Record<number, number>>;
  readonly groups?: Readonly<Record<number, number>>;
}

const NO_ID = 0xffffffff;

export function aclBytes({ userObj, groupObj, other, mask, users, groups }: AclText): Uint8Array {
  const named = (tag: number, entries: Readonly<Record<number, number>> | undefined) =>
    Object.entries(entries ?? {}).map(([id, bits]) => [tag, bits, Number(id)] as const);
  const entries = [
    [0x01, userObj, NO_ID] as const,
    ...named(0x02, users),
    [0x04, groupObj, NO_ID] as const,
    ...named(0x08, groups),
    ...(mask === undefined ? [] : [[0x10, mask, NO_ID] as const]),
    [0x20, other, NO_ID] as const,
  ];
  const bytes = Buffer.alloc(4 + entries.length * 8);
  bytes.writeUInt32LE(2, 0);
  for (const [index, [tag, bits, id]] of entries.entries()) {
    bytes.writeUInt16LE(tag, 4 + index * 8);
    bytes.writeUInt16LE(bits, 6 + index * 8);
    bytes.writeUInt32LE(id, 8 + index * 8);
  }
  return bytes;
}
