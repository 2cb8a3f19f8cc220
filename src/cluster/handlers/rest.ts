import type { OperationRecord } from '../../records/index.ts';
import type { Store } from '../../store/index.ts';
import type { Answer, CommitOnce } from '../idempotency.ts';
import { accountOf, type Identity } from '../identity.ts';
import type { KeyFacts } from '../keys.ts';
import { isFinished } from '../operations.ts';
import { ApiError } from '../problem.ts';
import * as routes from '../routes/index.ts';
import { type Api, answerOf, identityOf, noContent, onceRequest, reply, send, serve, stream } from './serve.ts';
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

export const whoView = ({ account, role, vms, key, uid }: Identity) => ({
  account,
  role,
  ...(vms && { vms: { names: vms.names, prefixes: vms.prefixes } }),
  ...(key !== undefined && { key }),
  ...(uid !== undefined && { uid }),
});

export const serveRest = (api: Api): void => {
  serveOperations(api);
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
      if (record.kind.startsWith('image.')) return images.cancel(record, commit, accepted(record));
      if (record.kind === 'key.rotate') {
        if (!upkeep.runs(id))
          throw new ApiError(
            'WRONG_STATE',
            `the operation "${id}" does not run at the manager that was asked; ask the one that was asked to begin it`,
          );
        // A manager that ends between the two ends the work too.
        await commit({ conditions: [], operations: [] }, accepted(record));
        upkeep.cancel(id);
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
    return reply(routes.whoAmI, 200, whoView(identityOf(c)));
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
    // Without the global store the region goes on, and its managers with it.
    await kit.region.get('health');
    return reply(routes.getHealth, 200, { status: 'ok' });
  });
};
