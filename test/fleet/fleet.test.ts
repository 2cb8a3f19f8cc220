/**
 * A region under use while its parts die, are cut off and return. `PORTHOLE_FLEET_SECONDS` says for how long;
 * `PORTHOLE_FLEET_SEED` makes the choices of an earlier run again (when each of them is met, only the machine knows).
 */
import assert from 'node:assert/strict';
import { randomInt } from 'node:crypto';
import { test } from 'node:test';
import { setTimeout as pause } from 'node:timers/promises';
import { isDeepStrictEqual } from 'node:util';
import { decodeRecord, VmStatusRecord } from '../../src/records/index.ts';
import { keyText } from '../../src/store/index.ts';
import { http, type Json } from '../cluster/http.ts';
import { checkPlaces } from '../cluster/invariants.ts';
import { until } from '../until.ts';
import { FleetClient } from './client.ts';
import { Fleet } from './fleet.ts';
import { Seeded } from './seeded.ts';

const seconds = Number(process.env['PORTHOLE_FLEET_SECONDS'] ?? 8);
const seed = Number(process.env['PORTHOLE_FLEET_SEED'] ?? randomInt(2 ** 31));
const accounts = ['blue', 'red'] as const;

/** One thing is broken at a time, sometimes two; each is there again after a while. */
const breakThings = async (fleet: Fleet, choices: Seeded, signal: AbortSignal, counts: Map<string, number>) => {
  const forAWhile = (mostMs: number): Promise<void> => pause(200 + choices.below(mostMs));
  const { managers, hosts, etcd } = fleet;
  const acts: readonly (readonly [string, () => Promise<void>])[] = [
    [
      'manager killed',
      async () => {
        const manager = choices.of(managers);
        await manager.kill();
        await forAWhile(1_000);
        await manager.start();
      },
    ],
    [
      'manager cut off from etcd',
      async () => {
        const manager = choices.of(managers);
        manager.cutOff();
        await forAWhile(3_000);
        manager.heal();
      },
    ],
    [
      'host killed',
      async () => {
        const host = choices.of(hosts);
        await host.kill();
        await forAWhile(1_000);
        await host.start();
      },
    ],
    [
      'host cut off',
      async () => {
        const host = choices.of(hosts);
        const all = choices.chance(0.5);
        const only = choices.below(managers.length);
        host.cutOff((manager) => all || manager === only);
        await forAWhile(3_000);
        host.heal();
      },
    ],
    [
      'etcd member killed',
      async () => {
        const member = choices.chance(0.5) ? await etcd.leader() : choices.of(etcd.members);
        await etcd.kill(member);
        await forAWhile(2_000);
        etcd.restart(member);
        await etcd.healthy();
      },
    ],
  ];
  while (!signal.aborted) {
    const [name, act] = choices.of(acts);
    counts.set(name, (counts.get(name) ?? 0) + 1);
    await act();
    await forAWhile(400);
  }
};

/** No VM runs on two machines, and no host sees another's. */
const checkHosts = async (fleet: Fleet, choices: Seeded): Promise<void> => {
  const running = fleet.hosts.flatMap(({ machine }) => [...machine.running.keys()]);
  assert.equal(new Set(running).size, running.length, 'a VM runs twice');
  const { vms } = await checkPlaces(fleet.stores.region);
  const { name, daemon } = choices.of(fleet.hosts);
  const other = vms.find(({ host }) => host !== name);
  if (daemon === undefined || other === undefined) return;
  const { id, name: vm } = other;
  const seen = async (look: Promise<unknown>): Promise<unknown> => look.catch(() => undefined);
  assert.equal(await seen(daemon.store.get(`vm/${vm}`)), undefined, `${name} sees ${vm}`);
  for (const key of [`seed/${vm}`, `vmstatus/${vm}`, `tree/${id}/head`, 'authority', 'key/', 'peersecret'])
    assert.equal(await seen(daemon.store.get(key)), undefined, `${name} sees ${key}`);
  assert.equal(await seen(daemon.store.range({ start: `tree/${id}/`, end: `tree/${id}0` })), undefined);
};

/** Until nobody acts any more; then what is there is what was asked for. */
const settled = async (fleet: Fleet): Promise<void> => {
  await until('all that was asked for to be so', async () => {
    const { vms, at } = await checkPlaces(fleet.stores.region);
    const statuses = new Map(
      (await at('vmstatus/')).map(({ key, value }) => [
        keyText(key),
        decodeRecord(VmStatusRecord, keyText(key), value),
      ]),
    );
    return vms.every(({ name, id, desired, generation }) => {
      const status = statuses.get(`vmstatus/${name}`);
      return status?.id === id && status.status === desired && status.generation === generation;
    });
  });
};

/** Lists, and counts by the index of the global store, in the same words. */
const saidOf = async (url: string, key: string): Promise<unknown> => {
  const [listed, counted] = await Promise.all(
    ['/v1/vms?limit=500', '/v1/counts'].map((path) => http({ url, key, path })),
  );
  if (listed!.status !== 200 || counted!.status !== 200) return `${listed!.text} ${counted!.text}`;
  const vms = listed!.json['vms'] as unknown as readonly { readonly name: string; readonly status: string }[];
  const counts = counted!.json['counts'] as unknown as readonly { readonly status: string; readonly count: number }[];
  return {
    vms: vms.map(({ name, status }) => `${name} ${status}`).toSorted(),
    counts: ['running', 'stopped'].map((status) => {
      const sum = counts.reduce((total, one) => total + (one.status === status ? one.count : 0), 0);
      return `${sum} ${status}`;
    }),
  };
};

/** What each manager says is what was asked for, and what was acknowledged. */
const checkAnswers = async (fleet: Fleet, clients: readonly FleetClient[], keys: ReadonlyMap<string, string>) => {
  for (const { url, name: manager } of fleet.managers)
    for (const [account, key] of keys) {
      const own = clients.filter(({ name }) => name.startsWith(account)).flatMap(({ vms }) => [...vms.values()]);
      const wished = own.map(({ name, desired }) => `${name} ${desired}`).toSorted();
      const counted = ['running', 'stopped'].map(
        (status) => `${own.filter(({ desired }) => desired === status).length} ${status}`,
      );
      let said: unknown;
      await until(`${manager} to say what ${account} has`, async () => {
        said = await saidOf(url, key);
        return isDeepStrictEqual(said, { vms: wished, counts: counted });
      }).catch(() => assert.deepEqual(said, { vms: wished, counts: counted }, `${manager}, ${account}`));
    }
  for (const client of clients)
    for (const vm of client.vms.values())
      for (const [path, value] of vm.values)
        await until(`${vm.name}/${path} to be read`, () => client.look(vm, path, value));
};

/** Hosts have recorded who was shown which secret, and their logs are whole. */
const checkAudit = async (fleet: Fleet, clients: readonly FleetClient[]): Promise<void> => {
  const client = clients.find(({ vms }) => vms.size > 0);
  const [vm] = client?.vms.values() ?? [];
  if (client === undefined || vm === undefined) return;
  const path = `/v1/vms/${vm.name}/metadata/secrets/own`;
  await until('a secret to be read', async () => (await client.ask({ path }))?.text === vm.secret);
  const { socketPath } = fleet.managers[1]!;
  const events = await until('all hosts to answer', async () => {
    const { json } = await http({ socketPath, path: `/v1/audit?regions=all&path=/secrets/own&vm=${vm.name}` });
    const answer = json as unknown as {
      readonly missing: readonly unknown[];
      readonly events: readonly { readonly vm: string; readonly host: string }[];
    };
    return answer.missing.length === 0 && answer.events;
  });
  const host = fleet.hosts.find(({ machine }) => [...machine.running.values()].includes(vm.name));
  assert.ok(events.length > 0 && events.every((event) => event.vm === vm.name));
  if (host !== undefined) assert.deepEqual(new Set(events.map((event) => event.host)), new Set([host.name]));
  for (const { name } of fleet.hosts) {
    const check = await http({ socketPath, path: `/v1/hosts/${name}/audit/check` });
    assert.deepEqual(check.json['problems'], [], name);
  }
};

test('a region loses nothing, doubles nothing and shows nothing to others while its parts die, are cut off and return', async (t) => {
  t.diagnostic(`PORTHOLE_FLEET_SEED=${seed} PORTHOLE_FLEET_SECONDS=${seconds}`);
  const troubles = new Set<string>();
  const capacity = { vcpus: 5, memoryMiB: 4 * 256, diskBytes: 2 ** 40 };
  await using fleet = await Fleet.start({ managers: 2, hosts: 3, capacity, onTrouble: (what) => troubles.add(what) });
  const { socketPath } = fleet.managers[0]!;
  const asked = async (path: string, body: object): Promise<Json> => {
    const answer = await http({ socketPath, method: 'POST', path, body });
    assert.ok(answer.status < 300, answer.text);
    return answer.json;
  };
  for (const name of accounts) await asked('/v1/accounts', { name, quotas: { local: { nano: 7 } } });
  const choices = new Seeded(seed);
  const urls = fleet.managers.map(({ url }) => url);
  const clients: FleetClient[] = [];
  const keys = new Map<string, string>();
  for (const account of accounts) {
    const { text } = await asked('/v1/keys', { name: account, account, role: 'admin' });
    const key = String(text);
    keys.set(account, key);
    await until('the account', async () => {
      const body = { name: account, version: '1', recipe: 'tiny' };
      return (await http({ url: urls[0], key, method: 'POST', path: '/v1/images', body })).status === 202;
    });
    await until(
      'the image',
      async () => (await http({ url: urls[1], key, path: `/v1/images/${account}/1` })).status === 200,
    );
    for (const i of [0, 1])
      clients.push(
        new FleetClient({
          name: `${account}${i}`,
          image: account,
          key,
          choices: new Seeded(choices.below(2 ** 31)),
          urls,
          others: () => clients.flatMap((client) => (client.name.startsWith(account) ? [] : [...client.vms.keys()])),
        }),
      );
  }

  const stop = new AbortController();
  const broken = new Map<string, number>();
  const checker = new Seeded(choices.below(2 ** 31));
  const checking = async (): Promise<void> => {
    while (!stop.signal.aborted) {
      await checkHosts(fleet, checker);
      await pause(100);
    }
  };
  // What was open is asked for until it is answered, which it is when all is there again.
  const last = AbortSignal.timeout(seconds * 1000 + 240_000);
  const works = [
    ...clients.map((client) => client.run(stop.signal, last)),
    checking(),
    breakThings(fleet, new Seeded(choices.below(2 ** 31)), stop.signal, broken),
  ];
  try {
    await Promise.race([pause(seconds * 1000), Promise.all(works)]);
  } finally {
    stop.abort();
    await Promise.allSettled(works);
    const done = new Map<string, number>();
    for (const { counts } of clients) for (const [what, n] of counts) done.set(what, (done.get(what) ?? 0) + n);
    for (const counted of [broken, done]) t.diagnostic(JSON.stringify(Object.fromEntries(counted)));
    for (const what of troubles) t.diagnostic(what.slice(0, 300));
  }
  await Promise.all(works);
  await fleet.healAll();
  await settled(fleet);
  const { vms: present } = await checkPlaces(fleet.stores.region);
  for (const client of clients) client.learn(new Set(present.map(({ name }) => name)));
  await checkAnswers(fleet, clients, keys);
  await checkAudit(fleet, clients);
  const { vms } = await checkPlaces(fleet.stores.region);
  assert.deepEqual(
    fleet.hosts.flatMap(({ machine }) => [...machine.running.keys()]).toSorted(),
    vms.flatMap(({ id, desired }) => (desired === 'running' ? [id] : [])).toSorted(),
  );
});
