/** The native API: a row for each request. Dispatch, checks, the OpenAPI document and the table in the docs come from it. */
import * as z from 'zod';
import {
  type Caller,
  type DirectoryHandle,
  type FileSystem,
  type Handle,
  type Mutation,
  type Node,
  type Outcome,
  PENDING,
  type Replica,
  ROOT_INO,
  type Time,
} from '../tree/index.ts';
import {
  EINVAL,
  ENOENT,
  ESTALE,
  O_RDONLY,
  O_RDWR,
  O_WRONLY,
  RENAME_EXCHANGE,
  RENAME_NOREPLACE,
} from '../wire/index.ts';
import { inputs, outputs } from './native-schemas.ts';
import { nodeJson } from './node-json.ts';

/** What a handler works with. */
export interface NativeContext {
  readonly replica: Replica;
  readonly fileSystem: FileSystem;
  readonly commit: (mutation: Mutation, sequence: number | undefined) => Promise<Outcome>;
}

/** The answer as JSON, or an errno. */
export type Answer = Readonly<Record<string, unknown>> | number;

export interface NativeRoute {
  readonly operationId: string;
  readonly summary: string;
  readonly input: z.ZodType;
  readonly output: z.ZodType;
  /** Runs on an input that its schema has passed. */
  readonly run: (context: NativeContext, input: unknown) => Answer | Promise<Answer>;
}

const route = <I extends z.ZodType, O extends z.ZodType>(
  operationId: string,
  summary: string,
  input: I,
  output: O,
  run: (context: NativeContext, input: z.output<I>) => Answer | Promise<Answer>,
): NativeRoute => ({
  operationId,
  summary,
  input,
  output,
  run: (context, given) => run(context, given as z.output<I>),
});

type Place = number | string;

/** Of a place, looked up name by name as the caller; a negative errno. */
const inoOf = ({ fileSystem }: NativeContext, caller: Caller, place: Place): number => {
  if (typeof place === 'number') return place;
  let ino = ROOT_INO;
  for (const name of place.split('/')) {
    if (name === '' || name === '.') continue;
    if (name === '..') return -EINVAL;
    const node = fileSystem.lookup(caller, ino, name);
    if (typeof node === 'number') return -node;
    ino = node.ino;
  }
  return ino;
};

const withIno = <T extends Answer | Promise<Answer>>(
  context: NativeContext,
  caller: Caller,
  place: Place,
  then: (ino: number) => T,
): T | number => {
  const ino = inoOf(context, caller, place);
  return ino < 0 ? -ino : then(ino);
};

const nodeAnswer = ({ replica }: NativeContext, node: Node | number): Answer =>
  typeof node === 'number' ? node : { node: nodeJson(replica, node) };

const changed = async (
  { commit }: NativeContext,
  sequence: number | undefined,
  mutation: Mutation,
): Promise<Answer> => {
  const { errno, revision, ino } = await commit(mutation, sequence);
  return errno === 0 ? { revision, ino } : errno;
};

const base64 = (bytes: Uint8Array): string => Buffer.from(bytes).toString('base64');
const fromBase64 = (text: string): Uint8Array => Buffer.from(text, 'base64');

const flagsOf = { read: O_RDONLY, write: O_WRONLY, 'read-write': O_RDWR } as const;
const READ_BYTES = 1024 * 1024;
/** Of an answer with a whole file in base64; a list of names may be as long. */
const LARGE_ANSWER_BYTES = 1.5 * 1024 * 1024;

const release = (fileSystem: FileSystem, handle: Handle): void => fileSystem.release(handle, () => {});

const open = (context: NativeContext, caller: Caller, ino: number, access: keyof typeof flagsOf): Answer => {
  const { fileSystem } = context;
  const handle = fileSystem.open(caller, ino, flagsOf[access]);
  if (typeof handle === 'number') return handle;
  try {
    const { node } = nodeAnswer(context, fileSystem.node(ino) ?? ENOENT) as { readonly node: unknown };
    const { revision } = fileSystem;
    if (access === 'write' || handle.stream) return { node, revision };
    const bytes = fileSystem.read(handle, 0, READ_BYTES);
    if (bytes === PENDING) return { node, revision, once: true };
    return typeof bytes === 'number' ? bytes : { node, revision, bytes: base64(bytes) };
  } finally {
    release(fileSystem, handle);
  }
};

const read = (
  context: NativeContext,
  caller: Caller,
  ino: number,
  offset: number,
  size: number,
  opened: boolean,
): Answer | Promise<Answer> => {
  const { fileSystem } = context;
  const handle = opened ? openAgain(context, caller, ino) : fileSystem.open(caller, ino, O_RDONLY);
  if (typeof handle === 'number') return handle;
  const answer = (bytes: Uint8Array | number): Answer => {
    const revision = fileSystem.node(ino)?.dataRevision ?? 0;
    release(fileSystem, handle);
    return typeof bytes === 'number' ? bytes : { bytes: base64(bytes), revision };
  };
  if (handle.stream) return answer(EINVAL);
  const bytes = fileSystem.read(handle, offset, size);
  if (bytes !== PENDING) return answer(bytes);
  return new Promise((resolve) => {
    fileSystem.waitRead(handle, offset, size, (errno, burnt) => resolve(answer(errno === 0 ? burnt! : errno)));
  });
};

/** POSIX checks what guests made when it is opened only; what was made outside is decided anew. */
const openAgain = ({ fileSystem }: NativeContext, caller: Caller, ino: number): Handle | number => {
  const node = fileSystem.node(ino);
  if (node === undefined) return ESTALE;
  return node.madeBy === 'guest' ? fileSystem.openAgain(caller, ino) : fileSystem.open(caller, ino, O_RDONLY);
};

const list = ({ fileSystem }: NativeContext, caller: Caller, ino: number): Answer => {
  const directory: DirectoryHandle | number = fileSystem.opendir(caller, ino);
  if (typeof directory === 'number') return directory;
  const entries: { readonly name: string; readonly ino: number; readonly type: number }[] = [];
  for (let index = 2; ; index++) {
    if (index === 2) fileSystem.entry(caller, directory, 0);
    const entry = fileSystem.entry(caller, directory, index);
    if (entry === undefined) break;
    entries.push({ name: entry.name, ino: entry.ino, type: entry.type });
  }
  fileSystem.releasedir(directory);
  return { entries };
};

const timeOf = (time: 'now' | readonly [number, number]): Time | 'now' =>
  time === 'now' ? 'now' : { sec: time[0], nsec: time[1] };

const inDirectory = (
  context: NativeContext,
  input: z.output<typeof inputs.entry>,
  mutation: (parentIno: number) => Mutation,
): Answer | Promise<Answer> =>
  withIno(context, input.caller, input.directory, (ino) => changed(context, input.sequence, mutation(ino)));

const making =
  (op: 'create' | 'mkdir') =>
  (context: NativeContext, input: z.output<typeof inputs.create>): Answer | Promise<Answer> =>
    inDirectory(context, input, (parentIno) => {
      const { caller, name, mode, umask } = input;
      return { op, caller, parentIno, name, mode, umask };
    });

const removing =
  (op: 'unlink' | 'rmdir') =>
  (context: NativeContext, input: z.output<typeof inputs.entry>): Answer | Promise<Answer> =>
    inDirectory(context, input, (parentIno) => ({ op, caller: input.caller, parentIno, name: input.name }));

const onNode = (
  context: NativeContext,
  input: { readonly caller: Caller; readonly node: Place; readonly sequence?: number | undefined },
  mutation: (ino: number) => Mutation,
): Answer | Promise<Answer> =>
  withIno(context, input.caller, input.node, (ino) => changed(context, input.sequence, mutation(ino)));

/** All `POST /porthole/v1/NAME`, with this boot's token. */
export const nativeRoutes: readonly NativeRoute[] = [
  route('stat', 'Attributes of a node.', inputs.of, outputs.node, (context, { caller, node }) =>
    withIno(context, caller, node, (ino) => nodeAnswer(context, context.fileSystem.getattr(caller, ino))),
  ),
  route(
    'list',
    'Names in a directory, without what is hidden from the caller.',
    inputs.of,
    outputs.entries,
    (context, { caller, node }) => withIno(context, caller, node, (ino) => list(context, caller, ino)),
  ),
  route('access', 'access(2).', inputs.access, outputs.nothing, (context, { caller, node, mask }) =>
    withIno(context, caller, node, (ino) => {
      const errno = context.fileSystem.access(caller, ino, mask);
      return errno === 0 ? {} : errno;
    }),
  ),
  route('readlink', 'The target of a symbolic link.', inputs.of, outputs.bytes, (context, { caller, node }) =>
    withIno(context, caller, node, (ino) => {
      const target = context.fileSystem.readlink(caller, ino);
      return typeof target === 'number' ? target : { bytes: base64(target) };
    }),
  ),
  route(
    'getxattr',
    'An extended attribute: `system.porthole.why` and others.',
    inputs.attribute,
    outputs.bytes,
    (context, { caller, node, name }) =>
      withIno(context, caller, node, (ino) => {
        const value = context.fileSystem.getxattr(caller, ino, name);
        return typeof value === 'number' ? value : { bytes: base64(value) };
      }),
  ),
  route(
    'open',
    'Decides an open(2), records it, and answers with the bytes where it reads.',
    inputs.open,
    outputs.opened,
    (context, { caller, node, access }) => withIno(context, caller, node, (ino) => open(context, caller, ino, access)),
  ),
  route(
    'read',
    'Bytes of a file, decided anew. Burns what can be read `once`.',
    inputs.read,
    outputs.bytes,
    (context, { caller, node, offset, size, opened }) =>
      withIno(context, caller, node, (ino) => read(context, caller, ino, offset, size, opened)),
  ),
  route('write', 'One write(2), committed before it is answered.', inputs.write, outputs.outcome, (context, input) =>
    onNode(context, input, (ino) => ({
      op: 'write',
      caller: input.caller,
      ino,
      offset: input.offset,
      data: fromBase64(input.bytes),
      append: input.append,
      truncate: input.truncate,
      grantedAtOpen: input.opened,
    })),
  ),
  route('truncate', 'Another size.', inputs.truncate, outputs.outcome, (context, input) =>
    onNode(context, input, (ino) => ({
      op: 'truncate',
      caller: input.caller,
      ino,
      sizeBytes: input.size,
      grantedAtOpen: input.opened,
    })),
  ),
  route('create', 'Makes an empty file that was not there.', inputs.create, outputs.outcome, making('create')),
  route('mkdir', 'Makes a directory.', inputs.create, outputs.outcome, making('mkdir')),
  route('symlink', 'Makes a symbolic link.', inputs.symlink, outputs.outcome, (context, input) =>
    inDirectory(context, input, (parentIno) => ({
      op: 'symlink',
      caller: input.caller,
      parentIno,
      name: input.name,
      target: Buffer.from(input.target),
    })),
  ),
  route('delete', 'unlink(2).', inputs.entry, outputs.outcome, removing('unlink')),
  route('rmdir', 'rmdir(2).', inputs.entry, outputs.outcome, removing('rmdir')),
  route('rename', 'renameat2(2).', inputs.rename, outputs.outcome, (context, input) =>
    withIno(context, input.caller, input.toDirectory, (newParentIno) =>
      inDirectory(context, input, (parentIno) => ({
        op: 'rename',
        caller: input.caller,
        parentIno,
        name: input.name,
        newParentIno,
        newName: input.toName,
        flags: (input.exchange ? RENAME_EXCHANGE : 0) | (input.noReplace ? RENAME_NOREPLACE : 0),
      })),
    ),
  ),
  route('setattr', 'chmod(2), chown(2), utimensat(2).', inputs.setattr, outputs.outcome, (context, input) =>
    onNode(context, input, (ino) => ({
      op: 'setattr',
      caller: input.caller,
      ino,
      ...(input.mode !== undefined && { mode: input.mode }),
      ...(input.uid !== undefined && { uid: input.uid }),
      ...(input.gid !== undefined && { gid: input.gid }),
      ...(input.atime !== undefined && { atime: timeOf(input.atime) }),
      ...(input.mtime !== undefined && { mtime: timeOf(input.mtime) }),
    })),
  ),
  route('setxattr', 'setxattr(2).', inputs.setxattr, outputs.outcome, (context, input) =>
    onNode(context, input, (ino) => ({
      op: 'setxattr',
      caller: input.caller,
      ino,
      name: input.name,
      value: fromBase64(input.bytes),
      flags: input.flags,
    })),
  ),
  route('removexattr', 'removexattr(2).', inputs.removexattr, outputs.outcome, (context, input) =>
    onNode(context, input, (ino) => ({ op: 'removexattr', caller: input.caller, ino, name: input.name })),
  ),
  route(
    'forget',
    'Nobody in the guest has a file open any more that lost its name.',
    inputs.forget,
    outputs.outcome,
    (context, { node }) => changed(context, undefined, { op: 'drop', caller: { uid: 0, gid: 0, pid: 0 }, ino: node }),
  ),
];

export const isRefusal = (answer: Answer): answer is number => typeof answer === 'number';

/** How long an answer may be. */
export const answerBytes = ({ operationId }: NativeRoute): number =>
  ['open', 'read', 'list'].includes(operationId) ? LARGE_ANSWER_BYTES : 0;

export const batchLimits = {
  requests: 64,
  /** One whose answers come to so much ends with the answer that did. */
  answerBytes: 2 * 1024 * 1024,
  /** So that its whole answer has at most so many. */
  mostBytes: 2 * 1024 * 1024 + LARGE_ANSWER_BYTES,
} as const;

export const byName: ReadonlyMap<string, NativeRoute> = new Map(
  nativeRoutes.map((route) => [route.operationId, route]),
);

export const batchInput = z.strictObject({
  requests: z
    .array(z.object({ operation: z.enum([...byName.keys()]), input: z.record(z.string(), z.unknown()) }))
    .min(1)
    .max(batchLimits.requests),
});
