/** Malformed FUSE requests: every row of the operation table, spoilt in every way that its shape allows. */
import { abi, type Operation, operations } from '../../src/fuse/index.ts';
import type { Client, Send } from '../fuse/client.ts';
import { fieldOf } from '../fuse/fields.ts';

/**
 * What must come of it. `errno`: it is refused. `answered`: refused or not, it gets one answer that fits. `silent`: it is
 * given back with nothing in it.
 */
type Outcome = 'errno' | 'answered' | 'silent';

/** What a guest holds before it turns hostile. */
export interface Held {
  readonly client: Client;
  readonly file: number;
  readonly link: number;
  readonly guest: number;
  readonly fh: number;
  readonly directoryFh: number;
}

export interface FuseCase {
  readonly name: string;
  readonly expects: Outcome;
  readonly frame: (held: Held) => Uint8Array;
  /** Room for the answer. Default: 64 KiB. */
  readonly room?: number;
  readonly beforeInit?: boolean;
}

const IN = abi.InHeader.sizeBytes;
const OUT = abi.OutHeader.sizeBytes;
const ALL_ONES = 2 ** 64 - 2 ** 12;
/** The shortest SETXATTR: what Linux sends without FUSE_SETXATTR_EXT. */
const SETXATTR_BYTES = abi.FUSE_COMPAT_SETXATTR_IN_SIZE;

/** A request of each row as a kernel might send it; rows that are refused whatever they say need none. */
function sample(row: Operation, held: Held): Send {
  const { file, link, guest, fh, directoryFh } = held;
  switch (row.name) {
    case 'LOOKUP':
      return { rest: ['instance'] };
    case 'FORGET':
      return { nodeid: file, in: { nlookup: 1 } };
    case 'BATCH_FORGET':
      return { nodeid: 0, in: { count: 1 }, rest: [new Uint8Array(16)] };
    case 'READLINK':
      return { nodeid: link };
    case 'SYMLINK':
      return { nodeid: guest, rest: ['made-link', 'target'] };
    case 'MKDIR':
      return { nodeid: guest, in: { mode: 0o755 }, rest: ['made'] };
    case 'UNLINK':
    case 'RMDIR':
      return { nodeid: guest, rest: ['absent'] };
    case 'RENAME':
    case 'RENAME2':
      return { nodeid: guest, in: { newdir: guest }, rest: ['own', 'other'] };
    case 'CREATE':
      return { nodeid: guest, in: { flags: 2, mode: 0o644 }, rest: ['created'] };
    case 'READ':
      return { nodeid: file, in: { fh, size: 4096 } };
    case 'WRITE':
      return { nodeid: file, in: { fh, size: 4 }, rest: [new Uint8Array(4)] };
    case 'SETXATTR':
      return { nodeid: guest, rest: ['user.x', new Uint8Array(0)] };
    case 'GETXATTR':
      return { nodeid: file, in: { size: 256 }, rest: ['system.porthole.why'] };
    case 'REMOVEXATTR':
      return { nodeid: file, rest: ['user.x'] };
    case 'READDIR':
    case 'READDIRPLUS':
      return { in: { fh: directoryFh, size: 4096 } };
    case 'RELEASEDIR':
    case 'FSYNCDIR':
      return { in: { fh: directoryFh } };
    case 'INIT':
      return { nodeid: 0, in: { major: 7, minor: 38, flags: 0x7fff_ffff } };
    case 'INTERRUPT':
      return { nodeid: 0, in: { unique: 4242 } };
    default:
      return row.in?.fields.includes('fh') === true ? { nodeid: file, in: { fh } } : { nodeid: file };
  }
}

const viewOf = (frame: Uint8Array): DataView => new DataView(frame.buffer, frame.byteOffset, frame.byteLength);

/** The frame cut or padded to `bytes`, with a length that says so. */
function resized(frame: Uint8Array, bytes: number): Uint8Array {
  const other = new Uint8Array(bytes);
  other.set(frame.subarray(0, bytes));
  if (bytes >= 4) abi.InHeader.len.set(viewOf(other), 0, bytes);
  return other;
}

/** Bodies in the place of the first name of a request. */
const badNames: readonly { name: string; bytes: readonly number[] }[] = [
  { name: 'without a NUL', bytes: [0x61, 0x62, 0x63] },
  { name: 'that is empty', bytes: [0] },
  { name: 'of a slash', bytes: [0x2f, 0] },
  { name: 'with a slash in it', bytes: [0x61, 0x2f, 0x62, 0] },
  { name: 'that climbs out', bytes: [0x2e, 0x2e, 0x2f, 0x2e, 0x2e, 0x2f, 0x65, 0] },
  { name: 'of 256 bytes', bytes: [...Array.from({ length: 256 }, () => 0x61), 0] },
  { name: 'of 65000 bytes', bytes: [...Array.from({ length: 65_000 }, () => 0x61), 0] },
  { name: 'that is no UTF-8', bytes: [0xff, 0xfe, 0] },
  { name: 'of an overlong slash', bytes: [0xc0, 0xaf, 0] },
  { name: 'of half a surrogate', bytes: [0xed, 0xa0, 0x80, 0] },
  { name: 'with a NUL in it', bytes: [0x61, 0, 0x62, 0x63, 0x64, 0] },
  { name: 'of NULs alone', bytes: [0, 0, 0, 0] },
];

function casesOf(row: Operation): FuseCase[] {
  const cases: FuseCase[] = [];
  const { name } = row;
  const isSilent = row.reply === 'none';
  const refusal: Outcome = isSilent ? 'silent' : 'errno';
  const add = (
    what: string,
    expects: Outcome,
    spoil: (frame: Uint8Array, held: Held) => Uint8Array,
    more: Partial<FuseCase> = {},
  ) =>
    cases.push({
      name: `${name} ${what}`,
      expects,
      frame: (held) => spoil(held.client.frame(name, sample(row, held)), held),
      ...more,
    });
  const withField = (what: string, expects: Outcome, field: string, value: number) =>
    add(what, expects, (frame) => {
      fieldOf(row.in!, field).set(viewOf(frame), IN, value);
      return frame;
    });
  const has = (field: string): boolean => row.in?.fields.includes(field) === true && row.handler !== undefined;

  if (name !== 'INIT') add('before INIT', refusal, (frame) => frame, { beforeInit: true });
  add('whose length says one byte more', refusal, (frame) => {
    abi.InHeader.len.set(viewOf(frame), 0, frame.length + 1);
    return frame;
  });
  add('whose length says 2^32 - 1', refusal, (frame) => {
    abi.InHeader.len.set(viewOf(frame), 0, 0xffff_ffff);
    return frame;
  });
  add('whose extensions are longer than all of it', refusal, (frame) => {
    abi.InHeader.totalExtlen.set(viewOf(frame), 0, 0xffff);
    return frame;
  });
  if (row.bodyBytes > 0) {
    add('without its body', refusal, (frame) => resized(frame, IN));
    add('one byte short of its body', refusal, (frame) => resized(frame, IN + row.bodyBytes - 1));
    add('whose extensions eat its body', refusal, (frame) => {
      abi.InHeader.totalExtlen.set(viewOf(frame), 0, Math.ceil((frame.length - IN) / 8));
      return frame;
    });
  }
  add('with 60000 bytes behind it', isSilent ? 'silent' : 'answered', (frame) => resized(frame, frame.length + 60_000));
  if (row.in !== undefined)
    add('with ones in every field', isSilent ? 'silent' : 'answered', (frame) => {
      const fixed = name === 'SETXATTR' ? SETXATTR_BYTES : row.in!.sizeBytes;
      return frame.fill(0xff, IN, Math.min(frame.length, IN + fixed));
    });
  if (row.needsNode) {
    for (const [what, nodeid] of [
      ['of nodeid 0', 0],
      ['of a nodeid that was never given', 99_999],
      ['of nodeid 2^64 - 2^12', ALL_ONES],
    ] as const)
      add(what, 'errno', (frame) => {
        abi.InHeader.nodeid.set(viewOf(frame), 0, nodeid);
        return frame;
      });
  }
  if (has('fh') && name !== 'GETATTR' && name !== 'SETATTR') {
    const ofDirectory = name.includes('DIR');
    withField('of a handle that was never given', 'errno', 'fh', 77_777);
    withField('of handle 2^64 - 2^12', 'errno', 'fh', ALL_ONES);
    add(`of a handle of ${ofDirectory ? 'a file' : 'a directory'}`, 'errno', (frame, held) => {
      fieldOf(row.in!, 'fh').set(viewOf(frame), IN, ofDirectory ? held.fh : held.directoryFh);
      return frame;
    });
  }
  if (has('offset')) {
    withField('at offset 2^63', name === 'WRITE' ? 'errno' : 'answered', 'offset', 2 ** 63);
    withField('at offset 2^64 - 2^12', name === 'WRITE' ? 'errno' : 'answered', 'offset', ALL_ONES);
    withField('at offset 2^53 + 2', name === 'WRITE' ? 'errno' : 'answered', 'offset', 2 ** 53 + 2);
  }
  if (has('size')) withField('of 2^32 - 1 bytes', name === 'WRITE' ? 'errno' : 'answered', 'size', 0xffff_ffff);
  if (row.rest === 'name' || row.rest === 'two names' || row.rest === 'name and data') {
    const start = IN + (name === 'SETXATTR' ? SETXATTR_BYTES : (row.in?.sizeBytes ?? 0));
    for (const bad of badNames)
      add(
        `with a name ${bad.name}`,
        row.rest === 'two names' && bad.name === 'with a NUL in it'
          ? 'answered'
          : row.name.includes('XATTR')
            ? 'answered'
            : 'errno',
        (frame) => {
          const whole = resized(frame, start + bad.bytes.length);
          whole.set(bad.bytes, start);
          return whole;
        },
      );
  }
  if (row.rest === 'two names') {
    for (const bad of badNames)
      add(`with a second name ${bad.name}`, name === 'SYMLINK' ? 'answered' : 'errno', (frame) => {
        const start = IN + (row.in?.sizeBytes ?? 0);
        const first = frame.indexOf(0, start) + 1;
        const whole = resized(frame, first + bad.bytes.length);
        whole.set(bad.bytes, first);
        return whole;
      });
  }
  if (!isSilent) {
    add('with no room for an answer', 'silent', (frame) => frame, { room: 0 });
    add('with 15 bytes of room', 'silent', (frame) => frame, { room: OUT - 1 });
    if (row.handler !== undefined && row.replyBytes > 0)
      add('with room for an error alone', 'errno', (frame) => frame, { room: OUT + row.replyBytes - 1 });
  }
  return cases;
}

const generic = (name: string, expects: Outcome, frame: FuseCase['frame']): FuseCase => ({ name, expects, frame });

const getattr = ({ client, file }: Held): Uint8Array => client.frame('GETATTR', { nodeid: file });

const genericCases: FuseCase[] = [
  ...[1, 3, 4, 8, 15, 16, 24, 39].map((bytes) =>
    generic(`a request of ${bytes} bytes`, 'errno', (held) => resized(getattr(held), bytes)),
  ),
  ...[0, 7, 19, 54, 255, 4096, 0x7fff_ffff, 0xffff_ffff].map((opcode) =>
    generic(`opcode ${opcode}`, 'errno', (held) => {
      const frame = getattr(held);
      abi.InHeader.opcode.set(viewOf(frame), 0, opcode);
      return frame;
    }),
  ),
  generic('a request of ones', 'errno', () => new Uint8Array(80).fill(0xff)),
  generic('a request of zeros', 'errno', () => new Uint8Array(80)),
  generic('WRITE that says less than it brings', 'errno', ({ client, file, fh }) =>
    client.frame('WRITE', { nodeid: file, in: { fh, size: 3 }, rest: [new Uint8Array(4)] }),
  ),
  generic('WRITE that says more than it brings', 'errno', ({ client, file, fh }) =>
    client.frame('WRITE', { nodeid: file, in: { fh, size: 5 }, rest: [new Uint8Array(4)] }),
  ),
  generic('BATCH_FORGET that counts 2^32 - 1', 'silent', ({ client }) =>
    client.frame('BATCH_FORGET', { in: { count: 0xffff_ffff }, rest: [new Uint8Array(16)] }),
  ),
  generic('FORGET of more lookups than there were', 'silent', ({ client, guest }) =>
    client.frame('FORGET', { nodeid: guest, in: { nlookup: ALL_ONES } }),
  ),
  generic('FORGET of the root', 'silent', ({ client }) =>
    client.frame('FORGET', { nodeid: 1, in: { nlookup: ALL_ONES } }),
  ),
  generic('INIT of major 2^32 - 1', 'answered', ({ client }) => client.frame('INIT', { in: { major: 0xffff_ffff } })),
  generic('INIT of major 6', 'errno', ({ client }) => client.frame('INIT', { in: { major: 6, minor: 99 } })),
  generic('INIT of minor 0', 'errno', ({ client }) => client.frame('INIT', { in: { major: 7, minor: 0 } })),
  generic('INIT of minor 2^32 - 1', 'answered', ({ client }) =>
    client.frame('INIT', { in: { major: 7, minor: 0xffff_ffff, flags: 0xffff_ffff, flags2: 0xffff_ffff } }),
  ),
  generic('INIT without ATOMIC_O_TRUNC', 'errno', ({ client }) =>
    client.frame('INIT', { in: { major: 7, minor: 38, flags: 0 } }),
  ),
  generic('SETATTR to 2^63 bytes', 'errno', ({ client, guest }) =>
    client.frame('SETATTR', { nodeid: guest, in: { valid: 8, size: 2 ** 63 } }),
  ),
  generic('SETATTR with a thousand million nanoseconds', 'errno', ({ client, file }) =>
    client.frame('SETATTR', { nodeid: file, in: { valid: 0x30, atimensec: 1e9, mtimensec: 1e9 } }),
  ),
  generic('SETATTR to times before and after all time', 'answered', ({ client, guest }) =>
    client.frame('SETATTR', { nodeid: guest, in: { valid: 0x30, atime: 2 ** 63, mtime: 2 ** 62 } }),
  ),
  generic('SETATTR to mode 2^32 - 1 and owner 2^32 - 1', 'answered', ({ client, guest }) =>
    client.frame('SETATTR', { nodeid: guest, in: { valid: 7, mode: 0xffff_ffff, uid: 0xffff_ffff, gid: 0xffff_ffff } }),
  ),
  generic('ACCESS with ones', 'errno', ({ client, file }) =>
    client.frame('ACCESS', { nodeid: file, in: { mask: 0xffff_ffff } }),
  ),
  generic('OPEN with flags of ones', 'errno', ({ client, file }) =>
    client.frame('OPEN', { nodeid: file, uid: 1000, in: { flags: 0xffff_ffff } }),
  ),
  generic('OPEN of a directory', 'errno', ({ client, guest }) => client.frame('OPEN', { nodeid: guest })),
  generic('OPENDIR of a file', 'errno', ({ client, file }) => client.frame('OPENDIR', { nodeid: file })),
  generic('READLINK of a file', 'errno', ({ client, file }) => client.frame('READLINK', { nodeid: file })),
  generic('LOOKUP in a file', 'errno', ({ client, file }) => client.frame('LOOKUP', { nodeid: file, rest: ['x'] })),
  generic('MKDIR in a file', 'errno', ({ client, file }) => client.frame('MKDIR', { nodeid: file, rest: ['x'] })),
  generic('RENAME into a file', 'errno', ({ client, guest, file }) =>
    client.frame('RENAME', { nodeid: guest, in: { newdir: file }, rest: ['own', 'x'] }),
  ),
  generic('RENAME into a nodeid that was never given', 'errno', ({ client, guest }) =>
    client.frame('RENAME', { nodeid: guest, in: { newdir: 99_999 }, rest: ['own', 'x'] }),
  ),
  generic('RENAME of a directory into itself', 'errno', ({ client, guest }) =>
    client.frame('RENAME', { nodeid: 1, in: { newdir: guest }, rest: ['guest', 'x'] }),
  ),
  generic('RENAME2 with flags of ones', 'errno', ({ client, guest }) =>
    client.frame('RENAME2', { nodeid: guest, in: { newdir: guest, flags: 0xffff_ffff }, rest: ['own', 'x'] }),
  ),
  generic('SYMLINK to 4096 bytes', 'errno', ({ client, guest }) =>
    client.frame('SYMLINK', { nodeid: guest, rest: ['long', 'x'.repeat(4096)] }),
  ),
  generic('SYMLINK to 70000 bytes', 'errno', ({ client, guest }) =>
    client.frame('SYMLINK', { nodeid: guest, rest: ['long', 'x'.repeat(70_000)] }),
  ),
  ...(['system.posix_acl_access', 'system.posix_acl_default'] as const).flatMap((name) =>
    [
      ['that is empty', []],
      ['cut within its version', [2, 0]],
      ['of version 99', [99, 0, 0, 0]],
      ['cut within an entry', [2, 0, 0, 0, 1, 0, 7]],
      ['with an unknown tag', [2, 0, 0, 0, 0x77, 0, 7, 0, 0xff, 0xff, 0xff, 0xff]],
      ['with permissions of ones', [2, 0, 0, 0, 1, 0, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff]],
      ['of 5000 entries', [2, 0, 0, 0, ...Array.from({ length: 40_000 }, (_, i) => i & 0xff)]],
    ].map(([what, bytes]) =>
      generic(`SETXATTR of ${name} ${String(what)}`, 'answered', ({ client, guest }) => {
        const value = Uint8Array.from(bytes as number[]);
        const frame = client.frame('SETXATTR', { nodeid: guest, rest: [name, value] });
        abi.SetxattrIn.size.set(viewOf(frame), IN, value.length);
        return frame;
      }),
    ),
  ),
];

export const allFuseCases: readonly FuseCase[] = [...operations.flatMap(casesOf), ...genericCases];
