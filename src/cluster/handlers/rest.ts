import type { z } from '@hono/zod-openapi';
import type { ImageFile, ImageRecord, ImageRequest, Once, OperationRecord } from '../../records/index.ts';
import type { Store } from '../../store/index.ts';
import type { Answer, CommitOnce } from '../idempotency.ts';
import { accountOf } from '../identity.ts';
import { KeyedUploads } from '../keyed-uploads.ts';
import type { KeyFacts } from '../keys.ts';
import { isFinished } from '../operations.ts';
import { ApiError, toApiError } from '../problem.ts';
import * as routes from '../routes/index.ts';
import {
  type Api,
  answerOf,
  idempotencyKey,
  identityOf,
  noContent,
  onceRequest,
  reply,
  send,
  serve,
  stream,
} from './serve.ts';
import { isoTime, operationView } from './vms.ts';

const keyView = ({ id, name, role, account, vms, createdAtMs, expiresAtMs }: KeyFacts) => ({
  id,
  name,
  role,
  account,
  ...(vms && { vms: { names: vms.names, prefixes: vms.prefixes } }),
  createdAt: isoTime(createdAtMs),
  ...(expiresAtMs !== undefined && { expiresAt: isoTime(expiresAtMs) }),
});

const imageView = ({ name, version, digest, sizeBytes, virtualSizeBytes, createdAtMs }: ImageRecord) => ({
  name,
  version,
  digest,
  sizeBytes,
  virtualSizeBytes,
  createdAt: isoTime(createdAtMs),
});

export const serveRest = (api: Api): void => {
  serveOperations(api);
  serveImages(api);
  serveKeys(api);
  serveHost(api);
};

const serveOperations = (api: Api): void => {
  const { operations, images, upkeep, vms, batches, idempotency } = api.manager;

  serve(api, routes.listOperations, async (c) => {
    const { limit, cursor } = c.req.valid('query');
    const page = await operations.list(identityOf(c), { limit, cursor });
    return reply(routes.listOperations, 200, {
      operations: page.operations.map(operationView),
      ...(page.next !== undefined && { next: page.next }),
    });
  });

  serve(api, routes.getOperation, async (c) => {
    const { record } = await operations.get(identityOf(c), c.req.valid('param').id);
    return reply(routes.getOperation, 200, operationView(record));
  });

  serve(api, routes.watchOperation, async (c) => {
    const identity = identityOf(c);
    const { id } = c.req.valid('param');
    const last = c.req.valid('header')['last-event-id'] ?? '0';
    if (!/^\d{1,15}$/.test(last)) throw new ApiError('BAD_REQUEST', 'the Last-Event-ID is none of an operation');
    return stream(c, api, async (signal) => {
      const followed = await operations.follow(identity, id, Number(last), signal);
      return (async function* () {
        for await (const { revision, operation } of followed)
          yield { event: 'operation', id: String(revision), data: operationView(operation) };
      })();
    });
  });

  serve(api, routes.listOperationVms, async (c) => {
    const { id } = c.req.valid('param');
    await operations.get(identityOf(c), id);
    const { limit, cursor } = c.req.valid('query');
    const { items, next } = await batches.items(id, { limit, cursor });
    return reply(routes.listOperationVms, 200, {
      vms: items.map(({ name, state, operation, error }) => ({
        name,
        state,
        ...(operation !== undefined && { operation }),
        ...(error && { error: { code: error.code, detail: error.detail } }),
      })),
      ...(next !== undefined && { next }),
    });
  });

  serve(api, routes.cancelOperation, async (c) => {
    const { account } = identityOf(c);
    const { id } = c.req.valid('param');
    const accepted = (operation: OperationRecord): Answer =>
      answerOf(routes.cancelOperation, 202, operationView(operation));
    const cancel = async (commit: CommitOnce): Promise<Answer> => {
      const { record, key, modRevision } = await operations.get(identityOf(c), id);
      if (isFinished(record)) throw new ApiError('WRONG_STATE', `the operation "${id}" has finished: ${record.state}`);
      if (record.kind.startsWith('vms.')) return batches.cancel(id, commit, accepted(record));
      if (record.kind === 'image.add' || record.kind === 'key.rotate') {
        const worker = record.kind === 'image.add' ? images : upkeep;
        if (!worker.runs(id)) throw new ApiError('WRONG_STATE', `the operation "${id}" does not run here any more`);
        // A manager that ends between the two ends the work too.
        await commit({ conditions: [], operations: [] }, accepted(record));
        worker.cancel(id);
        return accepted(record);
      }
      const instead = insteadOf[record.kind];
      if (instead === undefined)
        throw new ApiError('WRONG_STATE', `an operation ${record.kind} cannot be cancelled; it runs to its end`);
      const cancelled = await operations.change(record, {
        state: 'cancelled',
        error: { code: 'CANCELLED', detail: `it was cancelled, and the VM is ${instead.done} instead` },
      });
      const latest = await vms.find(account, record.target.name);
      if (latest.record.id !== record.target.id || latest.record.generation !== record.generation)
        throw new ApiError(
          'WRONG_STATE',
          `a later request to the VM "${record.target.name}" has taken the place of "${id}"`,
        );
      // One transaction: the other request takes its place, unless somebody else was faster.
      return vms.request(
        account,
        record.target.name,
        { kind: instead.kind },
        async (transaction, answer) => {
          if (await commit(transaction, answer)) return true;
          throw new ApiError('CONFLICT', `the operation "${id}" got on meanwhile; look at it again`);
        },
        () => accepted(cancelled.operation),
        async () => ({
          conditions: [
            { key, modRevision },
            { key: latest.key, modRevision: latest.modRevision },
          ],
          operations: cancelled.operations,
        }),
      );
    };
    return send(await idempotency.run(await onceRequest(c), cancel));
  });
};

/** What is asked for when an operation is cancelled that the host brings about. */
const insteadOf: Partial<
  Record<OperationRecord['kind'], { readonly kind: 'vm.stop' | 'vm.delete'; readonly done: string }>
> = {
  'vm.create': { kind: 'vm.delete', done: 'deleted' },
  'vm.start': { kind: 'vm.stop', done: 'stopped' },
};

type AskedFile = { readonly upload: string } | { readonly file: string };
const fileOf = (asked: AskedFile): ImageFile =>
  'upload' in asked ? { from: 'upload', id: asked.upload } : { from: 'host', path: asked.file };

const sourceOf = ({
  upload,
  file,
  format,
  kernel,
  recipe,
}: z.output<typeof routes.AddImage>): ImageRequest['source'] => {
  if (recipe !== undefined) return { kind: 'recipe', recipe };
  if (kernel === undefined)
    return { kind: 'disk', disk: fileOf(upload === undefined ? { file: file! } : { upload }), format };
  const { initrd, commandLine } = kernel;
  return { kind: 'kernel', kernel: fileOf(kernel.kernel), initrd: initrd && fileOf(initrd), commandLine };
};

const serveImages = (api: Api): void => {
  const { images, idempotency, kit } = api.manager;
  const keyedUploads = new KeyedUploads(kit.wallMs);

  serve(
    api,
    routes.uploadFile,
    async (c) => {
      const length = c.req.header('content-length');
      const body = c.req.raw.body;
      if (length === undefined || Number(length) === 0 || body === null)
        throw new ApiError('BAD_REQUEST', 'an upload needs a body that is not empty, and its Content-Length');
      const { account, ended } = identityOf(c);
      const signal = AbortSignal.any([c.req.raw.signal, ...(ended ? [ended] : [])]);
      const receive = async () => {
        await using incoming = await kit.host.openUpload(Number(length), { signal });
        api.expectLong(c.env);
        try {
          const { expiresAtMs, ...upload } = await incoming.receive(body, { signal });
          const answer = answerOf(routes.uploadFile, 201, { ...upload, expiresAt: isoTime(expiresAtMs) });
          return { answer, expiresAtMs };
        } catch (error) {
          if (!signal.aborted) throw error;
          throw new ApiError('BAD_REQUEST', 'the upload broke off; send the file again', {}, error);
        }
      };
      return send(await keyedUploads.run({ account, key: idempotencyKey(c) }, Number(length), receive));
    },
    { bodyBytes: Number.MAX_SAFE_INTEGER },
  );

  serve(api, routes.listImages, async (c) =>
    reply(routes.listImages, 200, { images: (await images.list(identityOf(c).account)).map(imageView) }),
  );

  serve(api, routes.addImage, async (c) => {
    const asked = c.req.valid('json');
    const { name, version } = asked;
    const { account } = identityOf(c);
    const source = sourceOf(asked);
    const files =
      source.kind === 'disk' ? [source.disk] : source.kind === 'kernel' ? [source.kernel, source.initrd] : [];
    if (files.some((file) => file?.from === 'host') && !c.get('isLocal'))
      throw new ApiError('FORBIDDEN', 'a file of the host can be added over its unix socket only; upload it');
    const answer = await idempotency.run(await onceRequest(c), (commit) =>
      images.add(account, { name, version, source }, commit, (operation) =>
        answerOf(routes.addImage, 202, operationView(operation), { location: `/v1/operations/${operation.id}` }),
      ),
    );
    return send(answer);
  });

  serve(api, routes.getImage, async (c) => {
    const { image, version } = c.req.valid('param');
    return reply(routes.getImage, 200, imageView(await images.get(identityOf(c).account, image, version)));
  });

  serve(api, routes.removeImage, async (c) => {
    const { image, version } = c.req.valid('param');
    const { account } = identityOf(c);
    const effect = async (once: Once | undefined): Promise<Answer> => {
      try {
        await images.remove(account, image, version);
      } catch (error) {
        // An earlier try of the same request got as far as that.
        if (once?.isRepeat !== true || toApiError(error).code !== 'NOT_FOUND') throw error;
      }
      return noContent;
    };
    return send(await idempotency.runOutside(await onceRequest(c), effect, (error) => !(error instanceof ApiError)));
  });
};

const serveKeys = (api: Api): void => {
  const { keys, idempotency, globalIdempotency, kit } = api.manager;

  serve(api, routes.listKeys, async (c) =>
    reply(routes.listKeys, 200, {
      keys: (await keys.list(accountOf(identityOf(c), c.req.valid('query').account))).map(keyView),
    }),
  );

  serve(api, routes.createKey, async (c) => {
    const { name, role, vms, expiresInSeconds, account: asked } = c.req.valid('json');
    const expiresAtMs = expiresInSeconds === undefined ? undefined : kit.wallMs() + expiresInSeconds * 1000;
    const account = accountOf(identityOf(c), asked);
    const answer = await globalIdempotency.run(await onceRequest(c), async (commit) => {
      const { key, text } = await keys.create(account, { name, role, vms, expiresAtMs }, commit);
      return answerOf(routes.createKey, 201, { key: keyView(key), text });
    });
    if (answer.status !== 409) return send(answer);
    const { key } = JSON.parse(answer.body) as { readonly key: string };
    throw new ApiError('IDEMPOTENCY_SECRET', `this request made the key "${key}" before; revoke it and make another`);
  });

  serve(api, routes.revokeKey, async (c) => {
    const account = accountOf(identityOf(c), c.req.valid('query').account);
    const { id } = c.req.valid('param');
    const once = await onceRequest(c);
    return send(await idempotency.run(once, (commit) => keys.revoke(account, id, commit, noContent)));
  });

  serve(api, routes.whoAmI, async (c) => {
    const { account, role, vms, key, uid } = identityOf(c);
    return reply(routes.whoAmI, 200, {
      account,
      role,
      ...(vms && { vms: { names: vms.names, prefixes: vms.prefixes } }),
      ...(key !== undefined && { key }),
      ...(uid !== undefined && { uid }),
    });
  });
};

/** How long etcd may take to be called reachable, as the definition says. SQLite answers, or fails. */
const reachableMs = 2_000;

const storeView = async (store: Store, aborted: AbortSignal) => {
  const { engine, ...place } = store.place;
  const signal = engine === 'etcd' ? AbortSignal.any([aborted, AbortSignal.timeout(reachableMs)]) : aborted;
  const reachable = await store.get('health', { signal }).then(
    () => true,
    () => false,
  );
  return { engine, ...place, reachable };
};

const serveHost = (api: Api): void => {
  const { kit } = api.manager;

  serve(api, routes.getHost, async (c) => {
    const { signal } = c.req.raw;
    const [{ startedAtMs, warnings, vms, metadataServers: _, ...rest }, region, global] = await Promise.all([
      kit.host.status({ signal }),
      storeView(kit.region, signal),
      storeView(kit.global, signal),
    ]);
    return reply(routes.getHost, 200, {
      ...rest,
      startedAt: isoTime(startedAtMs),
      warnings: [...warnings],
      stores: { region, global },
      vms: vms.map(({ deviceVersion, ...vm }) => ({ ...vm, ...(deviceVersion !== undefined && { deviceVersion }) })),
    });
  });

  serve(api, routes.getHealth, async () => {
    await Promise.all([kit.region.get('health'), kit.global.get('health')]);
    return reply(routes.getHealth, 200, { status: 'ok' });
  });
};
