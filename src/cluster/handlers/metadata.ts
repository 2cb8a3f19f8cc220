import { Buffer } from 'node:buffer';
import type { z } from '@hono/zod-openapi';
import type { Context } from 'hono';
import type {
  FileProblem,
  Once,
  TreeAnswer,
  TreeCondition,
  TreeEdit,
  TreeEntry,
  TreePort,
} from '../../records/index.ts';
import type { Answer } from '../idempotency.ts';
import { hasRole, nameOf } from '../identity.ts';
import { ApiError } from '../problem.ts';
import { checkEpoch, etagOf, readIfMatch, readRevision, writeRevision } from '../revision.ts';
import * as routes from '../routes/index.ts';
import { decodeTreePath, parseTreePath } from '../tree-path.ts';
import {
  type Api,
  answerOf,
  type Env,
  identityOf,
  longJson,
  onceRequest,
  reply,
  send,
  serve,
  serveBelow,
  stream,
  takeTurn,
} from './serve.ts';
import { treeFor } from './tree-for.ts';
import { isOpen, isoTime } from './vms.ts';

/** How long a write waits for replicas. */
const appliedMs = 2_000;
/** Values of one answer, together. */
const mostTreeBytes = 32 * 1024 * 1024;
const valueBytes = 1024 * 1024;
export const importBytes = 8 * 1024 * 1024;
const shortText = 64 * 1024;
const transactionBytes = 8 * 1024 * 1024;

type TreeView = z.input<typeof routes.TreeShape>;
type EditAnswer = Awaited<ReturnType<TreePort['edit']>>;

export const entryView = (answer: TreeAnswer, entry: TreeEntry) => ({
  path: entry.path,
  kind: entry.kind,
  madeBy: entry.madeBy,
  sizeBytes: entry.sizeBytes,
  dataRevision: writeRevision(answer, entry.dataRevision),
  revision: writeRevision(answer, entry.revision),
  uid: entry.uid,
  gid: entry.gid,
  mode: modeText(entry.mode),
  modifiedAt: isoTime(entry.mtimeMs),
  worldReadable: entry.worldReadable,
  burned: entry.burned,
  rule: entry.rule,
  owner: entry.owner,
  group: entry.group,
  acl: entry.acl,
  ...(entry.changedMs !== undefined && { changedAt: isoTime(entry.changedMs) }),
});

export const modeText = (mode: number): string => mode.toString(8).padStart(4, '0');

export const warningsView = (warnings: readonly FileProblem[]) =>
  warnings.map(({ line, column, path, what, fix }) => ({ line, column, path, what, fix }));

/** The text that bytes are, where they are UTF-8; a byte order mark stays. */
const asText = (bytes: Uint8Array): string | undefined => {
  try {
    return new TextDecoder('utf-8', { fatal: true, ignoreBOM: true }).decode(bytes);
  } catch {
    return undefined;
  }
};

const valueView = ({ kind }: TreeEntry, bytes: Uint8Array) => {
  const text = asText(bytes);
  if (kind === 'symlink') return { target: text ?? Buffer.from(bytes).toString('latin1') };
  return text === undefined ? { base64: Buffer.from(bytes).toString('base64') } : { text };
};

/** The tree's path in a URL, from what was sent: a URL that was parsed has been changed already. */
const pathOf = (c: Context<Env>): string => {
  const sent = (c.env.incoming.url ?? '').split('?', 1)[0]!;
  return decodeTreePath(sent.split('/').slice(5).join('/'));
};

/** Checks what `serveBelow` leaves unchecked. */
const parse = <T>(
  schema: {
    safeParse(
      value: unknown,
    ):
      | { success: true; data: T }
      | { success: false; error: { issues: readonly { path: readonly PropertyKey[]; message: string }[] } };
  },
  value: unknown,
  where: string,
): T => {
  const result = schema.safeParse(value);
  if (result.success) return result.data;
  throw new ApiError('BAD_REQUEST', `the ${where} is not as it must be: see fields`, {
    fields: result.error.issues.map(({ path, message }) => ({ path: [where, ...path].join('.'), message })),
  });
};

const queryOf = (c: Context<Env>): Record<string, string | string[]> =>
  Object.fromEntries(
    Object.entries(c.req.queries()).map(([key, values]) => [key, values.length === 1 ? values[0]! : values]),
  );

export const serveMetadata = (api: Api): void => {
  const { idempotency } = api.manager;

  const treeOf = (c: Context<Env>, name: string): TreePort => treeFor(api, c, name);

  /** For `serveBelow`. */
  const namedTree = (c: Context<Env>): TreePort =>
    treeOf(c, parse(routes.VmParams, { name: c.req.param('name') }, 'path').name);

  const readsSecrets = (c: Context<Env>): boolean => hasRole(identityOf(c), 'operator');

  /** Who is shown secrets, for the audit; undefined for who is not. */
  const showsTo = (c: Context<Env>): { readonly by: string | undefined } => ({
    by: readsSecrets(c) ? nameOf(identityOf(c)) : undefined,
  });

  const notApplied = async (tree: TreePort, { revision }: TreeAnswer): Promise<string[]> => [
    ...(await tree.applied(revision, { timeoutMs: appliedMs })),
  ];

  /** One commit, once. */
  const edit = async (
    c: Context<Env>,
    tree: TreePort,
    edits: readonly TreeEdit[],
    conditions: readonly TreeCondition[],
    wanted: readonly TreeAnswer[],
    answer: (result: EditAnswer, notApplied: string[]) => Promise<Answer>,
  ): Promise<Response> => {
    const effect = async (once: Once | undefined): Promise<Answer> => {
      if (wanted.length > 0) {
        const current = await tree.stat('/');
        for (const one of wanted) checkEpoch(one, current);
      }
      const result = await tree.edit(edits, conditions, { once });
      return answer(result, await notApplied(tree, result));
    };
    return send(await idempotency.runOutside(await onceRequest(c), effect, isOpen));
  };

  serveBelow(api, routes.readMetadata, async (c) => {
    const tree = namedTree(c);
    const path = pathOf(c);
    const { view, after, limit } = parse(routes.MetadataQuery, queryOf(c), 'query');
    const { signal } = c.req.raw;
    if (view === 'tree') {
      takeTurn(c, api);
      const walked = await tree.walk(path, { mostBytes: mostTreeBytes, signal, ...showsTo(c) });
      const view = ({ bytes, ...entry }: (typeof walked.entries)[number]): TreeView['entries'][number] => ({
        ...entryView(walked, entry),
        ...(bytes !== undefined &&
          entry.kind !== 'directory' &&
          (entry.worldReadable || readsSecrets(c) ? valueView(entry, bytes) : { withheld: true })),
      });
      const { entries: _, ...head }: TreeView = { revision: writeRevision(walked, walked.revision), entries: [] };
      return longJson(head, 'entries', walked.entries, view, { 'porthole-kind': 'tree' });
    }
    if (view === 'below') {
      takeTurn(c, api);
      const from = after === undefined ? undefined : parseTreePath(after);
      const listed = await tree.list(path, { below: true, after: from, limit, signal });
      return directoryReply(listed, { 'porthole-kind': 'tree' });
    }
    const found = await tree.stat(path, { signal });
    const { entry } = found;
    const headers = {
      'porthole-kind': entry.kind,
      'porthole-revision': writeRevision(found, found.revision),
      'porthole-mode': modeText(entry.mode),
    };
    if (view === 'stat') return reply(routes.readMetadata, 200, entryView(found, entry), headers);
    if (entry.kind === 'directory') {
      const listed = await tree.list(path, { after, limit, signal });
      return directoryReply(listed, { ...headers, 'porthole-revision': writeRevision(listed, listed.revision) });
    }
    if (!entry.worldReadable && !readsSecrets(c))
      throw new ApiError(
        'FORBIDDEN',
        `not every program in the guest may read "${path}", so this needs the role operator`,
      );
    const read = await tree.read(path, { signal, ...showsTo(c) });
    // What it is may have changed since it was looked at.
    if (!read.entry.worldReadable && !readsSecrets(c))
      throw new ApiError(
        'FORBIDDEN',
        `not every program in the guest may read "${path}", so this needs the role operator`,
      );
    const etag = etagOf(writeRevision(read, read.entry.dataRevision));
    const all = {
      'cache-control': 'no-store',
      etag,
      ...headers,
      'porthole-kind': read.entry.kind,
      'porthole-revision': writeRevision(read, read.revision),
    };
    if (c.req.header('if-none-match')?.trim() === etag) return new Response(null, { status: 304, headers: all });
    return new Response(Buffer.from(read.bytes), { headers: { 'content-type': 'application/octet-stream', ...all } });
  });

  serveBelow(
    api,
    routes.writeMetadata,
    async (c) => {
      const tree = namedTree(c);
      const path = pathOf(c);
      const { kind } = parse(routes.WriteQuery, queryOf(c), 'query');
      const ifMatch = readIfMatch(c.req.header('if-match'));
      const ifNoneMatch = c.req.header('if-none-match')?.trim();
      if (ifNoneMatch !== undefined && ifNoneMatch !== '*')
        throw new ApiError('BAD_REQUEST', 'If-None-Match of a write can only be *: it must not exist');
      const bytes = new Uint8Array(await c.req.arrayBuffer());
      if (kind === 'directory' && bytes.length > 0) throw new ApiError('BAD_REQUEST', 'a directory has no body');
      const target = kind === 'symlink' ? asText(bytes) : '';
      if (target === undefined || (kind === 'symlink' && (target === '' || target.includes('\0'))))
        throw new ApiError('BAD_REQUEST', 'the target of a symlink must be UTF-8 text, not empty, without NUL');
      const put: TreeEdit =
        kind === 'file'
          ? { op: 'put', path, bytes }
          : kind === 'symlink'
            ? { op: 'symlink', path, target }
            : { op: 'directory', path };
      const conditions: TreeCondition[] = [
        ...matchCondition(path, ifMatch),
        ...(ifNoneMatch === '*' ? [{ path, exists: false }] : []),
      ];
      return edit(c, tree, [put], conditions, typeof ifMatch === 'object' ? [ifMatch] : [], async (result, pending) => {
        const revision = writeRevision(result, result.revision);
        const found = result.dataRevisions.get(path) ?? (await tree.stat(path)).entry.dataRevision;
        const dataRevision = writeRevision(result, found);
        return answerOf(
          routes.writeMetadata,
          200,
          { revision, changes: result.changes, dataRevision, notApplied: pending },
          { etag: etagOf(dataRevision) },
        );
      });
    },
    { bodyBytes: valueBytes },
  );

  serveBelow(api, routes.removeMetadata, async (c) => {
    const tree = namedTree(c);
    const path = pathOf(c);
    const { recursive } = parse(routes.RemoveQuery, queryOf(c), 'query');
    if (path === '/') throw new ApiError('BAD_PATH', 'the root of a tree cannot be removed');
    const ifMatch = readIfMatch(c.req.header('if-match'));
    const edits: TreeEdit[] = [{ op: 'remove', path, recursive }];
    return edit(
      c,
      tree,
      edits,
      matchCondition(path, ifMatch),
      typeof ifMatch === 'object' ? [ifMatch] : [],
      async (result, pending) =>
        answerOf(routes.removeMetadata, 200, {
          revision: writeRevision(result, result.revision),
          changes: result.changes,
          notApplied: pending,
        }),
    );
  });

  serve(
    api,
    routes.editMetadata,
    async (c) => {
      const tree = treeOf(c, c.req.valid('param').name);
      const { edits, conditions } = c.req.valid('json');
      const wanted: TreeAnswer[] = [];
      const checked = conditions.map((condition): TreeCondition => {
        const path = parseTreePath(condition.path);
        if ('exists' in condition) return { path, exists: condition.exists };
        const revision = readRevision(condition.dataRevision, 'the dataRevision');
        wanted.push(revision);
        return { path, dataRevision: revision.revision };
      });
      return edit(c, tree, edits.map(editOf), checked, wanted, async (result, pending) =>
        answerOf(routes.editMetadata, 200, {
          revision: writeRevision(result, result.revision),
          changes: result.changes,
          notApplied: pending,
        }),
      );
    },
    { bodyBytes: transactionBytes },
  );

  serve(api, routes.exportSpec, async (c) => {
    takeTurn(c, api);
    const tree = treeOf(c, c.req.valid('param').name);
    const exported = await tree.export({ signal: c.req.raw.signal, ...showsTo(c) });
    return yamlResponse(exported.text, writeRevision(exported, exported.revision));
  });

  serve(
    api,
    routes.importSpec,
    async (c) => {
      const tree = treeOf(c, c.req.valid('param').name);
      const text = await yamlText(c, api);
      const ifMatch = readIfMatch(c.req.header('if-match'));
      const effect = async (once: Once | undefined): Promise<Answer> => {
        const result = await tree.import(text, { once, ...(await ifRevision(tree, ifMatch)) });
        return answerOf(routes.importSpec, 200, {
          revision: writeRevision(result, result.revision),
          changes: result.changes,
          warnings: warningsView(result.warnings),
          notApplied: await notApplied(tree, result),
        });
      };
      return send(await idempotency.runOutside(await onceRequest(c), effect, isOpen));
    },
    { bodyBytes: importBytes },
  );

  serve(api, routes.getPolicy, async (c) => {
    const tree = treeOf(c, c.req.valid('param').name);
    const policy = await tree.policy({ signal: c.req.raw.signal });
    return yamlResponse(policy.text, writeRevision(policy, policy.policyRevision));
  });

  serve(
    api,
    routes.setPolicy,
    async (c) => {
      const tree = treeOf(c, c.req.valid('param').name);
      const text = await yamlText(c, api);
      const ifMatch = readIfMatch(c.req.header('if-match'));
      const effect = async (once: Once | undefined): Promise<Answer> => {
        const result = await tree.setPolicy(text, { once, ...(await ifRevision(tree, ifMatch)) });
        const policyRevision = writeRevision(result, result.policyRevision);
        return answerOf(
          routes.setPolicy,
          200,
          {
            revision: writeRevision(result, result.revision),
            policyRevision,
            warnings: warningsView(result.warnings),
            notApplied: await notApplied(tree, result),
          },
          { etag: etagOf(policyRevision) },
        );
      };
      return send(await idempotency.runOutside(await onceRequest(c), effect, isOpen));
    },
    { bodyBytes: importBytes },
  );

  serve(api, routes.explainPolicy, async (c) => {
    const tree = treeOf(c, c.req.valid('param').name);
    const { path, uid, gid, group } = c.req.valid('query');
    const caller = { uid, gid: gid ?? uid, pid: 0, ...(group.length > 0 && { groups: group }) };
    const answer = await tree.explain(caller, parseTreePath(path), { signal: c.req.raw.signal });
    const { stoppedAt, ...told } = answer.explanation;
    return reply(routes.explainPolicy, 200, {
      revision: writeRevision(answer, answer.revision),
      ...told,
      mode: modeText(told.mode),
      shownMode: modeText(told.shownMode),
      keys: [...told.keys],
      ...(stoppedAt !== undefined && { stoppedAt }),
    });
  });

  serve(api, routes.watchMetadata, async (c) => {
    const tree = treeOf(c, c.req.valid('param').name);
    const { path, from } = c.req.valid('query');
    const after = c.req.valid('header')['last-event-id'] ?? from;
    const last = after === undefined ? undefined : readRevision(after, 'the revision to go on from');
    const below = parseTreePath(path);
    return stream(c, api, async (signal) => {
      if (last !== undefined && (await tree.stat('/')).epoch !== last.epoch)
        throw new ApiError('COMPACTED', 'the store was restored since that revision; read anew, then follow');
      const begun = await tree.watch(below, { signal, from: last && last.revision + 1 });
      return (async function* () {
        const start = writeRevision(begun, begun.revision);
        yield { event: 'start', id: start, data: { revision: start } };
        for await (const commit of begun.commits) {
          const revision = writeRevision(commit, commit.revision);
          if (commit.changes.length === 0 && !commit.policyChanged)
            yield { event: 'at', id: revision, data: { revision } };
          else
            yield {
              event: 'commit',
              id: revision,
              data: { revision, policyChanged: commit.policyChanged, changes: commit.changes },
            };
        }
      })();
    });
  });
};

const directoryReply = (
  listed: Awaited<ReturnType<TreePort['list']>>,
  headers: Readonly<Record<string, string>>,
): Response =>
  reply(
    routes.readMetadata,
    200,
    {
      revision: writeRevision(listed, listed.revision),
      entries: listed.entries.map((one) => entryView(listed, one)),
      more: listed.more,
    },
    headers,
  );

const matchCondition = (path: string, ifMatch: TreeAnswer | '*' | undefined): TreeCondition[] => {
  if (ifMatch === undefined) return [];
  return ifMatch === '*' ? [{ path, exists: true }] : [{ path, dataRevision: ifMatch.revision }];
};

const ifRevision = async (
  tree: TreePort,
  ifMatch: TreeAnswer | '*' | undefined,
): Promise<{ readonly ifRevision?: number | undefined }> => {
  if (ifMatch === undefined || ifMatch === '*') return {};
  checkEpoch(ifMatch, await tree.stat('/'));
  return { ifRevision: ifMatch.revision };
};

type EditShape = ReturnType<typeof routes.TransactionShape.parse>['edits'][number];

const editOf = (edit: EditShape): TreeEdit => {
  const path = parseTreePath(edit.path);
  switch (edit.op) {
    case 'put': {
      const bytes = edit.text === undefined ? Buffer.from(edit.base64!, 'base64') : Buffer.from(edit.text);
      if (bytes.length > valueBytes)
        throw new ApiError('TOO_LARGE', `the value of "${path}" has more than ${valueBytes} bytes`);
      return { op: 'put', path, bytes: new Uint8Array(bytes) };
    }
    case 'symlink':
      if (edit.target.includes('\0')) throw new ApiError('BAD_PATH', `the target of "${path}" has a NUL in it`);
      return { op: 'symlink', path, target: edit.target };
    case 'remove':
      if (path === '/') throw new ApiError('BAD_PATH', 'the root of a tree cannot be removed');
      return { op: 'remove', path, recursive: edit.recursive };
    case 'directory':
      return { op: 'directory', path };
  }
};

const yamlResponse = (text: string, revision: string): Response =>
  new Response(text, {
    headers: { 'content-type': 'application/yaml', 'cache-control': 'no-store', etag: etagOf(revision) },
  });

/** A long one is one of few. */
export const yamlText = async (c: Context<Env>, api: Api): Promise<string> => {
  const type = c.req.header('content-type')?.split(';', 1)[0]!.trim().toLowerCase();
  if (type !== 'application/yaml')
    throw new ApiError('WRONG_MEDIA_TYPE', 'send YAML, with "Content-Type: application/yaml"');
  const bytes = new Uint8Array(await c.req.arrayBuffer());
  if (bytes.length > shortText) takeTurn(c, api);
  const text = asText(bytes);
  if (text === undefined) throw new ApiError('BAD_REQUEST', 'the body is not UTF-8 text');
  return text;
};
