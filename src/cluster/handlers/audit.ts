/** The audit: of the hosts of one region or of all, followed, and checked. */
import { z } from '@hono/zod-openapi';
import { type AuditEvent, decodeRecord, ownHost, VmRecord } from '../../records/index.ts';
import { type Missing, reasonOf } from '../audit.ts';
import { merged, type Place, type Placed, type PlacedPage, readPlace, writePlace } from '../audit-merge.ts';
import { checkVm, type Identity, seesCluster } from '../identity.ts';
import { getRecord, type Kept } from '../kit.ts';
import { ApiError } from '../problem.ts';
import * as routes from '../routes/index.ts';
import { parseTreePath } from '../tree-path.ts';
import { type Api, identityOf, reply, serve, stream, takeTurn } from './serve.ts';
import { isoTime } from './vms.ts';

type EventView = z.output<typeof routes.AuditEventShape>;
type AuditQuery = z.output<typeof routes.AuditQueryShape>;

/** The events of a region, and whose are not among them. */
interface RegionPage extends PlacedPage<Placed & { readonly view: EventView }> {
  readonly missing: readonly Missing[];
}

/** How long other regions are waited for: longer than these wait for their hosts. */
const regionMs = 30_000;

const eventView = ({ id, atMs, record: { timeMs, ...record } }: AuditEvent, place?: Place): EventView => ({
  id,
  ...(place && { region: place.region, host: place.host }),
  time: isoTime(timeMs),
  keptAt: isoTime(atMs),
  ...record,
});

const treePath = (path: string | undefined): string | undefined =>
  path === undefined ? undefined : parseTreePath(path);

export const serveAudit = (api: Api): void => {
  serveQuery(api);
  serveFollow(api);

  serve(api, routes.checkAudit, async (c) => {
    const { host } = c.req.valid('param');
    const { after } = c.req.valid('query');
    const [sequence, chain] = after?.split('.') ?? [];
    const link = sequence === undefined ? undefined : { sequence: Number(sequence), chain: chain! };
    takeTurn(c, api);
    const { problems, last, ...check } = await api.manager.audit.check(host, link, c.req.raw.signal);
    return reply(routes.checkAudit, 200, {
      ...check,
      problems: [...problems],
      last: `${last.sequence}.${last.chain}`,
    });
  });
};

const serveQuery = (api: Api): void => {
  const { audit, regions, peers, kit, vms } = api.manager;

  const here = async (identity: Identity, asked: AuditQuery, signal: AbortSignal): Promise<RegionPage> => {
    const { cursor, from, until, order, path, regions: _, ...query } = asked;
    const { events, ...page } = await audit.page(
      identity,
      {
        ...query,
        path: treePath(path),
        fromMs: from === undefined ? undefined : Date.parse(from),
        untilMs: until === undefined ? undefined : Date.parse(until),
        newestFirst: order === 'newest',
        after: cursor === undefined ? undefined : readPlace(cursor),
      },
      signal,
    );
    return { ...page, events: events.map(({ place, event }) => ({ place, view: eventView(event, place) })) };
  };

  /** What a manager of another region answers to the same question about its own. */
  const there = async (
    region: string,
    identity: Identity,
    asked: AuditQuery,
    signal: AbortSignal,
  ): Promise<RegionPage> => {
    const given = Object.entries({ ...asked, regions: 'own' }).filter(([, value]) => value !== undefined);
    const query = new URLSearchParams(given.map(([name, value]) => [name, String(value)]));
    const ends = AbortSignal.any([signal, AbortSignal.timeout(regionMs)]);
    const response = await peers.get(region, identity, `/v1/audit?${query}`, ends);
    const answer: unknown = await response.json();
    if (!response.ok) {
      const { code, detail } = z.object({ code: z.string(), detail: z.string() }).parse(answer);
      if (code === 'VM_NOT_FOUND') return { events: [], next: undefined, missing: [] };
      throw new Error(detail);
    }
    const { events, next, missing } = routes.AuditPageShape.parse(answer);
    const placed = events.map((view) => {
      const { id, host = '', keptAt } = view;
      return { place: { atMs: Date.parse(keptAt), region, host, sequence: Number(id) }, view };
    });
    return { events: placed, next: next === undefined ? undefined : readPlace(next), missing };
  };

  const everywhere = async (identity: Identity, asked: AuditQuery, signal: AbortSignal): Promise<RegionPage> => {
    const { limit, order } = asked;
    const pages = await Promise.all(
      (await regions.list()).map(async ({ name: region }): Promise<RegionPage> => {
        if (region === kit.regionName) return here(identity, asked, signal);
        try {
          return await there(region, identity, asked, signal);
        } catch (error) {
          signal.throwIfAborted();
          kit.log.warn({ err: error, region }, 'the audit of a region cannot be had');
          return { events: [], next: undefined, missing: [{ region, reason: reasonOf(error) }] };
        }
      }),
    );
    return {
      ...merged(pages, { limit, newestFirst: order === 'newest' }),
      missing: pages.flatMap(({ missing }) => missing),
    };
  };

  serve(api, routes.queryAudit, async (c) => {
    const asked = c.req.valid('query');
    const identity = identityOf(c);
    const { vm } = asked;
    if (vm !== undefined && !seesCluster(identity)) {
      checkVm(identity, vm);
      if (asked.regions === 'own') await vms.find(identity.account, vm);
    }
    takeTurn(c, api);
    const ask = asked.regions === 'all' ? everywhere : here;
    const { events, next, missing } = await ask(identity, asked, c.req.raw.signal);
    return reply(routes.queryAudit, 200, {
      events: events.map(({ view }) => view),
      missing: missing.map(({ host, ...rest }) => ({ ...rest, ...(host !== undefined && { host }) })),
      ...(next !== undefined && { next: writePlace(next) }),
    });
  });
};

const isAt = ({ record: { host = ownHost } }: Kept<VmRecord>, now: VmRecord): boolean => (now.host ?? ownHost) === host;

const serveFollow = (api: Api): void => {
  const { manager } = api;
  const { host } = manager.kit;

  /**
   * Who may not see all follows one VM of their own, and nothing of before it was made, when its name may have been another's.
   * FORBIDDEN, VM_NOT_FOUND.
   */
  const shownOf = async (identity: Identity, vm: string | undefined): Promise<Kept<VmRecord> | undefined> => {
    if (seesCluster(identity)) return undefined;
    if (vm === undefined)
      throw new ApiError(
        'FORBIDDEN',
        'name one of your VMs: only the account that has the cluster follows all of a host',
      );
    checkVm(identity, vm);
    return manager.vms.find(identity.account, vm);
  };

  /**
   * Aborts when the VM is gone, as another may have its name from then on, which is perhaps of another account, and when it has
   * left the host: what that tells of it from then on is not believed.
   */
  const untilGone = (vm: Kept<VmRecord> | undefined, signal: AbortSignal): AbortSignal => {
    if (vm === undefined) return signal;
    const gone = new AbortController();
    const both = AbortSignal.any([signal, gone.signal]);
    const watch = async (): Promise<void> => {
      const range = { start: vm.key, end: `${vm.key}\0` };
      for await (const { events } of manager.kit.region.watch(range, { from: vm.modRevision + 1, signal: both }))
        for (const event of events)
          if (event.type === 'delete' || !isAt(vm, decodeRecord(VmRecord, vm.key, event.entry.value))) return;
    };
    // A watch that breaks ends the stream as well: whoever follows comes back, and is asked again.
    watch()
      .catch(() => {})
      .finally(() => gone.abort());
    return both;
  };

  /** Also when what is at the host is newer than what was heard of the store. */
  const isThere = async (vm: Kept<VmRecord> | undefined): Promise<boolean> => {
    if (vm === undefined) return true;
    const now = await getRecord(manager.kit.region, VmRecord, vm.key);
    return now?.createRevision === vm.createRevision && isAt(vm, now.record);
  };

  serve(api, routes.followAudit, async (c) => {
    const { path, ...filter } = c.req.valid('query');
    const after = c.req.valid('header')['last-event-id'];
    if (after !== undefined && !/^[A-Za-z0-9._-]{1,64}$/.test(after))
      throw new ApiError('BAD_REQUEST', 'the Last-Event-ID is none of an audit stream');
    const vm = await shownOf(identityOf(c), filter.vm);
    const beginning = vm?.record.createdAtMs ?? 0;
    const filters = { ...filter, path: treePath(path), account: vm?.record.account };
    return stream(c, api, async (streaming) => {
      const signal = untilGone(vm, streaming);
      const events = await host.followAudit(filters, { after, signal });
      return (async function* () {
        try {
          for await (const event of events) {
            if (!(await isThere(vm))) return;
            if (vm !== undefined && event.record.vm !== vm.record.name) continue;
            if (event.record.timeMs >= beginning) yield { event: 'audit', id: event.id, data: eventView(event) };
          }
        } catch (error) {
          if (streaming.aborted || !signal.aborted) throw error;
        }
      })();
    });
  });
};
