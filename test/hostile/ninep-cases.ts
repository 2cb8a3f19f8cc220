/** Malformed 9P2000.L frames: every row of the operation table, spoilt in every way that its shape allows. */
import { abi, type Operation, operations } from '../../src/ninep/index.ts';
import type { Field } from '../../src/wire/index.ts';
import { type AnyClient, type Fields, frame, frameOf, type Server } from '../ninep/client.ts';

/**
 * What must come of it. `closed`: the session ends with a reason. `errno`: it is refused. `answered`: refused or not, it has
 * one answer. `waits`: nothing, for its end has not come.
 */
type Outcome = 'closed' | 'errno' | 'answered' | 'waits';

/** What a client holds before it turns hostile. */
export interface Held<C extends AnyClient<Server> = AnyClient<Server>> {
  readonly client: C;
  readonly root: number;
  readonly guest: number;
  /** Open for reading and writing. */
  readonly file: number;
  readonly directory: number;
  readonly link: number;
  /** An attribute, to be read. */
  readonly xattr: number;
}

export interface NinepCase {
  readonly name: string;
  readonly expects: Outcome;
  /** Its tag is `TAG`, or nobody expects an answer. */
  readonly frame: (held: Held) => Uint8Array;
  readonly beforeVersion?: boolean;
}

export const TAG = 4321;
const HEADER = abi.Header.sizeBytes;
const ALL_ONES = 2 ** 64 - 2 ** 12;
const NO_SUCH_FID = 7_777_777;

/** Opens what the cases need. */
export function hold<C extends AnyClient<Server>>(client: C): Held<C> {
  client.version();
  const root = client.attach(1000);
  const guest = client.walk(root, 'guest');
  const file = client.walk(root, 'guest');
  client.ok('Tlcreate', { fid: file, name: 'own', flags: 2, mode: 0o644 });
  const xattr = client.newFid();
  client.ok('Txattrwalk', { fid: root, newfid: xattr, name: 'system.porthole.why' });
  return {
    client,
    root,
    guest,
    file,
    directory: client.open(root, 'guest'),
    link: client.walk(root, 'instance/link'),
    xattr,
  };
}

/** A request of each row as a client might send it. */
function sample(row: Operation, held: Held): Fields {
  const { client, root, guest, file, directory, link } = held;
  switch (row.name) {
    case 'Tversion':
      return { msize: 65_536, version: '9P2000.L' };
    case 'Tattach':
      return { fid: client.newFid(), afid: abi.NOFID, nUname: 1000, aname: '/' };
    case 'Twalk':
      return { fid: root, newfid: client.newFid(), names: ['instance', 'id'] };
    case 'Tlopen':
      return { fid: link };
    case 'Tlcreate':
    case 'Tmkdir':
    case 'Tunlinkat':
      return { fid: guest, name: 'made', mode: 0o755 };
    case 'Tmknod':
      return { fid: guest, name: 'made', mode: 0o100_644 };
    case 'Tsymlink':
      return { fid: guest, name: 'made', symtgt: 'target' };
    case 'Trename':
      return { fid: file, dfid: guest, name: 'other' };
    case 'Trenameat':
      return { fid: guest, oldname: 'own', newdirfid: guest, newname: 'other' };
    case 'Tlink':
      return { dfid: guest, fid: file, name: 'other' };
    case 'Treadlink':
      return { fid: link };
    case 'Txattrwalk':
      return { fid: root, newfid: client.newFid(), name: 'system.porthole.why' };
    case 'Txattrcreate':
      return { fid: guest, name: 'user.x', attrSize: 4 };
    case 'Treaddir':
      return { fid: directory, count: 4096 };
    case 'Tread':
      return { fid: file, count: 4096 };
    case 'Twrite':
      return { fid: file, data: new Uint8Array(4) };
    default:
      return { fid: file };
  }
}

const viewOf = (bytes: Uint8Array): DataView => new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);

/** The frame cut or padded to `bytes`, with a size that says so. */
function resized(whole: Uint8Array, bytes: number): Uint8Array {
  const other = new Uint8Array(bytes);
  other.set(whole.subarray(0, bytes));
  abi.Header.size.set(viewOf(other), 0, bytes);
  return other;
}

const withSize = (whole: Uint8Array, sizeBytes: number): Uint8Array => {
  abi.Header.size.set(viewOf(whole), 0, sizeBytes);
  return whole;
};

/** In the place of a directory entry's name. */
const badNames: readonly { name: string; bytes: Uint8Array }[] = [
  { name: 'that is empty', bytes: new Uint8Array() },
  { name: 'of a dot', bytes: Buffer.from('.') },
  { name: 'of two dots', bytes: Buffer.from('..') },
  { name: 'of a slash', bytes: Buffer.from('/') },
  { name: 'that climbs out', bytes: Buffer.from('../../etc') },
  { name: 'with a NUL in it', bytes: Buffer.from('a\0b') },
  { name: 'of 256 bytes', bytes: new Uint8Array(256).fill(0x61) },
  { name: 'of 60000 bytes', bytes: new Uint8Array(60_000).fill(0x61) },
  { name: 'that is no UTF-8', bytes: Uint8Array.of(0xff, 0xfe) },
  { name: 'of an overlong slash', bytes: Uint8Array.of(0xc0, 0xaf) },
  { name: 'of half a surrogate', bytes: Uint8Array.of(0xed, 0xa0, 0x80) },
];

/** Strings that are names of directory entries. */
const entryNames = new Set(['name', 'oldname', 'newname']);

function casesOf(row: Operation): NinepCase[] {
  const { name, shape } = row;
  if (shape === undefined) return [];
  const cases: NinepCase[] = [];
  const add = (what: string, expects: Outcome, spoil: (held: Held, fields: Fields) => Uint8Array) =>
    cases.push({ name: `${name} ${what}`, expects, frame: (held) => spoil(held, sample(row, held)) });
  const whole = (fields: Fields) => frame(name, TAG, fields);
  add('without its body', 'closed', (_, fields) => resized(whole(fields), HEADER));
  add('one byte short of its head', 'closed', (_, fields) => resized(whole(fields), HEADER + shape.head.sizeBytes - 1));
  // Older clients leave the tail of Tfsync out: one byte less of it is none of both.
  add('one byte short', 'closed', (_, fields) => resized(whole(fields), whole(fields).length - 1));
  add('with a byte behind it', 'closed', (_, fields) => resized(whole(fields), whole(fields).length + 1));
  add('with 60000 bytes behind it', 'closed', (_, fields) => resized(whole(fields), whole(fields).length + 60_000));
  add('whose size is one more than it is', 'waits', (_, fields) => withSize(whole(fields), whole(fields).length + 1));
  add('whose size is 2^32 - 1', 'closed', (_, fields) => withSize(whole(fields), 0xffff_ffff));
  add('with ones in every field of its head', shape.counted === undefined ? 'answered' : 'closed', (_, fields) =>
    whole(fields).fill(0xff, HEADER, HEADER + shape.head.sizeBytes),
  );
  if (shape.tail !== undefined)
    add('with ones in every field of its tail', 'answered', (_, fields) =>
      whole({ ...fields, ...Object.fromEntries(shape.tail!.fields.map((key) => [key, onesOf(shape.tail!, key)])) }),
    );
  for (const key of shape.head.fields.filter((field) => /fid$/i.test(field))) {
    const isNew = key === 'newfid' || key === 'afid' || (name === 'Tattach' && key === 'fid');
    if (isNew) {
      add(`with a ${key} that is in use`, 'errno', (held, fields) => whole({ ...fields, [key]: held.directory }));
      continue;
    }
    add(`of a ${key} that was never given`, 'errno', (_, fields) => whole({ ...fields, [key]: NO_SUCH_FID }));
    add(`of ${key} 2^32 - 1`, 'errno', (_, fields) => whole({ ...fields, [key]: abi.NOFID }));
  }
  if (shape.head.fields.includes('offset'))
    for (const offset of [2 ** 53 + 2, 2 ** 63, ALL_ONES])
      add(`at offset ${offset}`, name === 'Twrite' ? 'errno' : 'answered', (_, fields) => whole({ ...fields, offset }));
  if (shape.head.fields.includes('count'))
    for (const count of [0, 1, 0xffff_ffff])
      add(`that counts ${count}`, shape.counted === 'data' ? 'closed' : 'answered', (_, fields) =>
        whole({ ...fields, count }),
      );
  for (const key of [...shape.strings, ...shape.after]) {
    add(`whose ${key} goes past its end`, 'closed', (_, fields) => {
      const bytes = whole({ ...fields, [key]: 'zzzz' });
      viewOf(bytes).setUint16(Buffer.from(bytes).indexOf('zzzz') - 2, 60_000, true);
      return bytes;
    });
    for (const bad of badNames) {
      const isRefused = entryNames.has(key) && !name.startsWith('Txattr');
      add(`with a ${key} ${bad.name}`, isRefused ? 'errno' : 'answered', (_, fields) =>
        whole({ ...fields, [key]: bad.bytes }),
      );
    }
  }
  if (row.handler !== undefined && shape.head.fields[0] === 'fid' && name !== 'Tattach')
    for (const kind of ['xattr', 'root', 'link', 'directory', 'file'] as const)
      add(`of a fid that is ${kind}`, 'answered', (held, fields) => whole({ ...fields, fid: held[kind] }));
  return cases;
}

function onesOf(table: { readonly fields: readonly string[] }, key: string): number {
  const { size } = (table as unknown as Readonly<Record<string, Field>>)[key]!;
  return size === 8 ? ALL_ONES : 2 ** (size * 8) - 1;
}

const generic = (name: string, expects: Outcome, of: NinepCase['frame'], more: Partial<NinepCase> = {}): NinepCase => ({
  name,
  expects,
  frame: of,
  ...more,
});

const walkOf = ({ root, client }: Held, names: readonly (string | Uint8Array)[], fields: Fields = {}): Uint8Array =>
  frame('Twalk', TAG, { fid: root, newfid: client.newFid(), names, ...fields });

const genericCases: NinepCase[] = [
  ...[0, 1, 4, 6].map((size) =>
    generic(`a frame of size ${size}`, 'closed', ({ root }) => withSize(frame('Tgetattr', TAG, { fid: root }), size)),
  ),
  ...[65_537, 2 ** 24, 2 ** 31].map((size) =>
    generic(`a frame of size ${size}`, 'closed', ({ root }) => withSize(frame('Tgetattr', TAG, { fid: root }), size)),
  ),
  ...[1, 3, 4, 5, 6, 7, 18].map((bytes) =>
    generic(`the first ${bytes} bytes of a frame`, 'waits', ({ root }) =>
      frame('Tgetattr', TAG, { fid: root }).subarray(0, bytes),
    ),
  ),
  ...[0, 6, 7, 9, 99, 101, 103, 106, 112, 114, 124, 126, 127, 128, 255].map((type) =>
    generic(`type ${type}`, 'errno', () => frameOf(type, TAG, [1, 2, 3, 4, 5])),
  ),
  generic('a stream of ones', 'closed', () => new Uint8Array(200).fill(0xff)),
  generic('a stream of zeros', 'closed', () => new Uint8Array(200)),
  generic('an HTTP request', 'closed', () => Buffer.from('GET / HTTP/1.1\r\nHost: porthole\r\n\r\n')),
  generic('a request without a tag', 'closed', ({ root }) => frame('Tgetattr', abi.NOTAG, { fid: root })),
  generic('a tag that is in use', 'closed', ({ client, root }) => {
    const reading = client.start('Tread', { fid: client.open(root, '.changes'), count: 10 });
    return frame('Tgetattr', reading.tag, { fid: root });
  }),
  generic('Tflush of itself', 'answered', () => frame('Tflush', TAG, { oldtag: TAG })),
  generic('Tflush of no tag', 'answered', () => frame('Tflush', TAG, { oldtag: abi.NOTAG })),
  ...[0, 1, 4095].map((msize) =>
    generic(`Tversion of msize ${msize}`, 'errno', () => frame('Tversion', TAG, { msize, version: '9P2000.L' })),
  ),
  ...['', '9P2000', '9P2000.u', '9p2000.l', '9P2000.L\0', 'x'.repeat(60_000)].map((version) =>
    generic(`Tversion of ${JSON.stringify(version.slice(0, 12))}`, 'answered', () =>
      frame('Tversion', TAG, { msize: 8192, version }),
    ),
  ),
  ...[17, 100, 1000].map((count) =>
    generic(`Twalk of ${count} names`, 'errno', (held) =>
      walkOf(
        held,
        Array.from({ length: count }, () => 'guest'),
      ),
    ),
  ),
  generic('Twalk that counts fewer names than it has', 'closed', (held) => walkOf(held, ['a', 'b'], { nwname: 1 })),
  generic('Twalk that counts more names than it has', 'closed', (held) => walkOf(held, ['a', 'b'], { nwname: 3 })),
  generic('Twalk that counts 65535 names', 'closed', (held) => walkOf(held, ['a'], { nwname: 65_535 })),
  ...badNames
    .filter(({ name }) => name !== 'of a dot' && name !== 'of two dots')
    .map(({ name, bytes }) => generic(`Twalk with a name ${name}`, 'errno', (held) => walkOf(held, [bytes]))),
  generic('Twalk to fid 2^32 - 1', 'errno', (held) => walkOf(held, [], { newfid: abi.NOFID })),
  generic('Twrite of more than its file can hold', 'errno', ({ file }) =>
    frame('Twrite', TAG, { fid: file, offset: 1024 * 1024, data: new Uint8Array(1) }),
  ),
  generic('Txattrcreate of 2^63 bytes', 'errno', ({ guest }) =>
    frame('Txattrcreate', TAG, { fid: guest, name: 'user.x', attrSize: 2 ** 63 }),
  ),
  ...['Tattach', 'Tgetattr', 'Tread', 'Tflush', 'Tclunk', 'Twalk'].map((name) =>
    generic(`${name} before Tversion`, 'closed', () => frame(name, TAG), { beforeVersion: true }),
  ),
  generic(
    'Tversion of 5000 bytes as the first',
    'closed',
    () => frame('Tversion', TAG, { version: 'x'.repeat(5000) }),
    {
      beforeVersion: true,
    },
  ),
];

export const allNinepCases: readonly NinepCase[] = [...operations.flatMap(casesOf), ...genericCases];
