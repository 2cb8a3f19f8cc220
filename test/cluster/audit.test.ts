/** The audit of all hosts of all regions as one, over the logs that hosts keep. */
import assert from 'node:assert/strict';
import { mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { type TestContext, test } from 'node:test';
import { setImmediate as turn } from 'node:timers/promises';
import { AuditStore } from '../../src/host/audit-store.ts';
import { HostAudit } from '../../src/host/host-audit.ts';
import { type AuditEvent, decodeRecord, encodeRecord, type HostPort, VmRecord } from '../../src/records/index.ts';
import type { AuditRecord } from '../../src/tree/index.ts';
import { hostCalls } from '../../src/uplink/host-calls.ts';
import { until } from '../until.ts';
import { startApi, type TestApi } from './api.ts';
import { addHost } from './hosts.ts';
import { http, type Json } from './http.ts';

interface Events {
  readonly events: readonly {
    readonly region: string;
    readonly host: string;
    readonly id: string;
    readonly vm: string;
  }[];
  readonly missing: readonly { readonly region: string; readonly host?: string }[];
  readonly next?: string;
}

/** Logs of hosts, that share one clock, which stands still for a while and then goes on. */
const logsFor = (t: TestContext) => {
  const directory = mkdtempSync(join(tmpdir(), 'porthole-fleet-audit-'));
  t.after(() => rmSync(directory, { recursive: true, force: true }));
  let nowMs = Date.now();
  let names = 0;
  return {
    tick: () => nowMs++,
    nowMs: () => nowMs,
    log: (): AuditStore => {
      const log = new AuditStore({
        directory: join(directory, String(names++)),
        keepDays: 30,
        mostBytes: 2 ** 30,
        segmentBytes: 20_000,
        wallMs: () => nowMs,
        onHealth: () => {},
      });
      t.after(() => log[Symbol.dispose]());
      return log;
    },
  };
};

const hostOf = (log: AuditStore): HostPort =>
  new HostAudit(log, { drain: () => {}, ended: new AbortController().signal }) as Partial<HostPort> as HostPort;

const changeVm = async ({ stores: { region } }: TestApi, name: string, fields: Partial<VmRecord>): Promise<void> => {
  const key = `vm/${name}`;
  const record = decodeRecord(VmRecord, key, (await region.get(key))!.value);
  await region.commit({ operations: [{ type: 'put', key, value: encodeRecord({ ...record, ...fields }) }] });
};

const tcp = { tcp: { host: '127.0.0.1', port: 0 } };

const recordOf = (vm: string, timeMs: number, uid: number): AuditRecord => ({
  timeMs,
  vm,
  way: 'virtiofs',
  operation: 'open',
  path: '/secrets/db',
  uid,
  gid: uid,
  pid: 1,
  revision: 1,
  verdict: 'allowed',
  rule: 'default',
});

const pagesOf = async (ask: (path: string) => Promise<Json>, query: string): Promise<Events[]> => {
  const pages: Events[] = [];
  for (let cursor = ''; ; ) {
    const page = (await ask(`/v1/audit?${query}${cursor}`)) as unknown as Events;
    pages.push(page);
    if (page.next === undefined) return pages;
    cursor = `&cursor=${page.next}`;
  }
};

const asker =
  (api: TestApi, key?: string) =>
  async (path: string): Promise<Json> => {
    const answer = await api.ask({ path, ...(key !== undefined && { url: api.server.url!, key }) });
    assert.equal(answer.status, 200, answer.text);
    return answer.json;
  };

test('queryAudit asks all hosts of all regions, in one order, and names those that do not answer', async (t) => {
  const clock = logsFor(t);
  const logs = new Map<string, AuditStore>();
  const hostsOf = (region: string) => (): ReadonlyMap<string, HostPort> =>
    new Map(
      [...logs].flatMap(([name, log]) => {
        const [of, host] = name.split('/') as [string, string];
        return of === region ? [[host, hostOf(log)]] : [];
      }),
    );
  const here = await startApi(t, { listen: tcp, manager: { connected: hostsOf('local') } });
  const { global } = here.stores;
  const there = await startApi(t, {
    listen: tcp,
    manager: { regionName: 'eu', ownHost: false, global, connected: hostsOf('eu') },
  });
  await here.ask({ method: 'PUT', path: '/v1/regions/eu', body: { addresses: [there.server.url!] } });
  for (const name of ['local', 'h1', 'h2']) logs.set(`local/${name}`, clock.log());
  for (const name of ['h1', 'e2']) logs.set(`eu/${name}`, clock.log());
  for (const name of ['h1', 'h2']) await addHost(here.stores.region, name);
  for (const name of ['h1', 'e2']) await addHost(there.stores.region, name);

  const written: string[] = [];
  for (let n = 0; n < 700; n++) {
    const names = [...logs.keys()];
    const where = names[Math.floor(Math.random() * names.length)]!;
    logs.get(where)!.append([recordOf('web', clock.nowMs(), n % 5)], { account: 'default' });
    written.push(where);
    if (Math.random() < 0.3) clock.tick();
  }
  const ask = asker(here);
  for (const order of ['oldest', 'newest'])
    for (const limit of [7, 100, 500]) {
      const pages = await pagesOf(ask, `regions=all&order=${order}&limit=${limit}`);
      const events = pages.flatMap((page) => page.events);
      assert.equal(events.length, 700, `${order} ${limit}`);
      assert.equal(new Set(events.map(({ region, host, id }) => `${region}/${host}/${id}`)).size, 700);
      const times = events.map((event) => (event as unknown as { readonly keptAt: string }).keptAt);
      assert.deepEqual(times, order === 'oldest' ? times.toSorted() : times.toSorted().toReversed());
      assert.ok(pages.every(({ events: some, missing }) => some.length <= limit && missing.length === 0));
    }
  const few = (await pagesOf(ask, 'regions=all&uid=3&limit=20')).flatMap(({ events }) => events);
  assert.equal(few.length, 140);
  const own = (await pagesOf(ask, '')).flatMap(({ events }) => events);
  assert.equal(own.length, written.filter((where) => where.startsWith('local/')).length);

  // A host that is away, and one that fails, and a region: each is named, on every page, and the others answer.
  logs.delete('eu/e2');
  logs.get('local/h2')!.page = () => Promise.reject(new Error('no disk'));
  const partly = await pagesOf(ask, 'regions=all&limit=100');
  for (const { missing } of partly)
    assert.deepEqual(missing.map(({ region, host }) => `${region}/${host}`).toSorted(), ['eu/e2', 'local/h2']);
  const left = written.filter((where) => where !== 'eu/e2' && where !== 'local/h2');
  assert.equal(partly.flatMap(({ events }) => events).length, left.length);
  await there.server.close();
  const [page] = await pagesOf(ask, 'regions=all&limit=500');
  assert.deepEqual(page!.missing.map(({ region, host }) => `${region}/${host ?? ''}`).toSorted(), ['eu/', 'local/h2']);
});

test('queryAudit is held up by no host that does not get on, or is out of order', async (t) => {
  const clock = logsFor(t);
  const log = clock.log();
  const own = hostOf(log);
  const answers: Awaited<ReturnType<HostPort['audit']>>[] = [];
  const hostile = { audit: async () => answers.shift()! } as Partial<HostPort> as HostPort;
  const connected = () => new Map([...Object.entries({ local: own, h1: hostile })]);
  const api = await startApi(t, { listen: tcp, manager: { connected } });
  await addHost(api.stores.region, 'h1');
  log.append([recordOf('web-1', clock.nowMs(), 1)], {});
  const record = recordOf('web-2', clock.nowMs(), 2);
  const event = (atMs: number, id: number) => ({ id: String(id), atMs, record });
  const ask = asker(api);
  const asked = async (path: string, answer: (typeof answers)[number]): Promise<Events> => {
    answers.push(answer);
    return (await ask(path)) as unknown as Events;
  };
  const first = await asked('/v1/audit?limit=100', { events: [event(1, 1)], next: { atMs: 1, sequence: 1 } });
  assert.ok(first.next !== undefined && first.missing.length === 0);
  for (const answer of [
    { events: [], next: { atMs: 1, sequence: 1 } },
    { events: [], next: { atMs: 0, sequence: 9 } },
    { events: [event(1, 1)], next: undefined },
    { events: [event(5, 5), event(4, 4)], next: undefined },
    { events: [event(5, 5)], next: { atMs: 4, sequence: 4 } },
  ]) {
    const page = await asked(`/v1/audit?limit=100&cursor=${first.next}`, answer);
    assert.deepEqual(
      page.events.map(({ host }) => host),
      ['local'],
    );
    assert.deepEqual(
      page.missing.map(({ host }) => host),
      ['h1'],
    );
  }
  // One that finds nothing is asked on, for a while.
  const slow = (found: number) => {
    hostile.audit = async ({ after }) => {
      const sequence = (after?.sequence ?? 0) + 1;
      const at = { atMs: sequence, sequence };
      return { events: sequence === found ? [event(sequence, sequence)] : [], next: at };
    };
  };
  for (const found of [50, Number.POSITIVE_INFINITY]) {
    slow(found);
    const { events, missing, next } = (await ask('/v1/audit?limit=100')) as unknown as Events;
    const isFound = found === 50;
    assert.deepEqual(
      events.map(({ host }) => host),
      [isFound ? 'h1' : 'local'],
    );
    assert.deepEqual([missing.length, next !== undefined], [isFound ? 0 : 1, isFound]);
  }
  for (const atMs of [9e15, -1]) {
    const answer = { events: [{ ...event(0, 1), atMs }] };
    assert.equal(hostCalls.audit.answer.safeParse(answer).success, false);
  }
});

test('queryAudit shows an account the VMs that are its own, on whichever host, and nothing of before them', async (t) => {
  const clock = logsFor(t);
  const logs = new Map([
    ['local', clock.log()],
    ['h1', clock.log()],
  ]);
  /** That leaves it to whoever asks for which VMs it is asked. */
  const lax = (log: AuditStore): HostPort => {
    const { audit } = hostOf(log);
    return { audit: (query) => audit({ ...query, vms: undefined }) } as Partial<HostPort> as HostPort;
  };
  const connected = () => new Map([...logs].map(([name, log]) => [name, lax(log)]));
  const api = await startApi(t, { listen: tcp, manager: { connected } });
  await addHost(api.stores.region, 'h1');
  await api.ask({ method: 'POST', path: '/v1/accounts', body: { name: 'team' } });
  const keyOf = async (body: object): Promise<string> => {
    const made = await api.ask({ method: 'POST', path: '/v1/keys', body: { name: 'k', role: 'operator', ...body } });
    return String(made.json['text']);
  };
  const key = await keyOf({ account: 'team' });
  const keptSince = Date.now();
  const make = async (name: string): Promise<void> => {
    await until('the account', async () => {
      const body = { name, kind: 'attached' };
      return (await http({ method: 'POST', path: '/v1/vms', url: api.server.url!, key, body })).status === 202;
    });
  };
  await make('web-1');
  await make('db');
  await api.ask({ method: 'POST', path: '/v1/vms', body: { name: 'theirs', kind: 'attached' } });
  const now = Date.now() + 1;
  const hourMs = 3_600_000;
  const place = async (name: string, host: string, stays: VmRecord['stays']): Promise<void> =>
    changeVm(api, name, { host, ...(stays && { stays }) });
  await place('web-1', 'local', [{ host: 'h1', fromMs: keptSince, untilMs: now }]);
  await place('db', 'h1', [{ host: 'local', fromMs: now + hourMs, untilMs: now + 2 * hourMs }]);
  await place('theirs', 'h1', undefined);
  const put = (host: string, vm: string, account: string | undefined, timeMs: number, uid: number): void => {
    logs.get(host)!.append([recordOf(vm, timeMs, uid)], account === undefined ? {} : { account });
  };
  put('local', 'web-1', 'team', now, 1);
  put('h1', 'web-1', 'team', now, 2);
  put('h1', 'db', 'team', now, 3);
  put('h1', 'theirs', 'default', now, 4);
  // A VM of others that had the name on that host, whatever its host's clock said; one of the account itself; one that is gone.
  put('h1', 'web-1', 'default', now, 5);
  put('h1', 'web-1', 'team', keptSince - 1, 6);
  put('h1', 'gone', 'team', now, 7);
  put('local', 'web-1', undefined, now, 8);
  // Of hosts that the VM has left by then, that did not have it yet, and that never had it.
  put('h1', 'web-1', 'team', now + hourMs, 9);
  put('local', 'db', 'team', now, 10);
  put('local', 'theirs', 'default', now, 11);
  const uids = async (ask: (path: string) => Promise<Json>, query: string): Promise<number[]> =>
    (await pagesOf(ask, query))
      .flatMap(({ events }) => events.map((event) => (event as unknown as { readonly uid: number }).uid))
      .toSorted();
  for (const regions of ['own', 'all']) {
    const ask = asker(api, key);
    assert.deepEqual(await uids(ask, `regions=${regions}`), [1, 2, 3]);
    assert.deepEqual(await uids(ask, `regions=${regions}&limit=1&order=newest`), [1, 2, 3]);
    assert.deepEqual(await uids(ask, `regions=${regions}&vm=web-1`), [1, 2]);
    const scoped = asker(api, await keyOf({ account: 'team', vms: { prefixes: ['web-'] } }));
    assert.deepEqual(await uids(scoped, `regions=${regions}`), [1, 2]);
    const ofDefault = asker(api, await keyOf({ vms: { names: ['theirs'] } }));
    assert.deepEqual(await uids(ofDefault, `regions=${regions}`), [4]);
    assert.deepEqual(await uids(asker(api), `regions=${regions}`), [1, 10, 11, 2, 3, 4, 5, 6, 7, 8, 9]);
  }
  assert.deepEqual(await uids(asker(api, key), 'regions=all&vm=theirs'), []);
});

test('followAudit shows an account its VM alone, until that leaves the host', async (t) => {
  const api = await startApi(t, { listen: tcp });
  const body = { name: 'k', role: 'viewer', vms: { names: ['web'] } };
  const key = String((await api.ask({ method: 'POST', path: '/v1/keys', body })).json['text']);
  for (const name of ['web', 'db'])
    await api.ask({ method: 'POST', path: '/v1/vms', body: { name, kind: 'attached' } });
  const left = Promise.withResolvers<void>();
  const event = (id: number, vm: string): AuditEvent => ({
    id: String(id),
    atMs: id,
    record: recordOf(vm, Date.now() + 60_000, id),
  });
  let isEnded = false;
  api.host.followAudit = async () =>
    (async function* () {
      try {
        yield event(1, 'db');
        yield event(2, 'web');
        await left.promise;
        for (let id = 3; id < 1000; id++) {
          yield event(id, 'web');
          await turn();
        }
      } finally {
        isEnded = true;
      }
    })();
  const whole = http({ url: api.server.url!, path: '/v1/audit/stream?vm=web', key });
  await until('the stream', async () =>
    /^porthole_api_streams\S* 1$/m.test((await api.ask({ path: '/metrics' })).text),
  );
  await changeVm(api, 'web', { host: 'h1' });
  left.resolve();
  const { text } = await whole;
  assert.deepEqual(
    [...text.matchAll(/^id: (\d+)$/gm)].map(([, id]) => id),
    ['2'],
  );
  assert.ok(isEnded);
});
