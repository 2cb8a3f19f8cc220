/** Accounts, regions and hosts. */
import type { AccountRecord, Once, OperationRecord, PrefixesRecord, RegionRecord } from '../../records/index.ts';
import type { HostFacts } from '../hosts.ts';
import type { Answer, CommitOnce } from '../idempotency.ts';
import { ApiError, toApiError } from '../problem.ts';
import * as routes from '../routes/index.ts';
import { type Api, answerOf, identityOf, noContent, onceRequest, reply, send, serve } from './serve.ts';
import { isoTime, operationView } from './vms.ts';

const vmsShown = 1000;

const accountView = ({ name, state, quotas, mayUseHostNetworks, createdAtMs }: AccountRecord) => ({
  name,
  state,
  quotas,
  ...(mayUseHostNetworks && { mayUseHostNetworks }),
  createdAt: isoTime(createdAtMs),
});

const hostView = ({ record, use: { vcpus, memoryMiB, diskBytes, vms }, isLive }: HostFacts) => ({
  name: record.name,
  id: record.id,
  isConnected: isLive,
  cordoned: record.cordoned,
  draining: record.draining,
  labels: record.labels,
  ...(record.capacity && { capacity: record.capacity }),
  taken: { vcpus, memoryMiB, diskBytes, vms },
  addedAt: isoTime(record.addedAtMs),
});

export const serveCluster = (api: Api): void => {
  serveAccounts(api);
  serveRegions(api);
  servePrefixes(api);
  serveHosts(api);
};

const serveAccounts = (api: Api): void => {
  const { accounts, globalIdempotency } = api.manager;

  serve(api, routes.listAccounts, async () =>
    reply(routes.listAccounts, 200, { accounts: (await accounts.list()).map(accountView) }),
  );

  serve(api, routes.createAccount, async (c) => {
    const { quotas, ...rest } = c.req.valid('json');
    const answer = (account: AccountRecord): Answer => answerOf(routes.createAccount, 201, accountView(account));
    const once = await onceRequest(c);
    return send(
      await globalIdempotency.run(once, (commit) =>
        accounts.create({ ...rest, quotas: limitsOf(quotas) }, commit, answer),
      ),
    );
  });

  serve(api, routes.getAccount, async (c) =>
    reply(routes.getAccount, 200, accountView((await accounts.get(c.req.valid('param').account)).record)),
  );

  serve(api, routes.setQuotas, async (c) => {
    const { account } = c.req.valid('param');
    const quotas = limitsOf(c.req.valid('json'));
    const answer = (changed: AccountRecord): Answer => answerOf(routes.setQuotas, 200, accountView(changed));
    const once = await onceRequest(c);
    return send(await globalIdempotency.run(once, (commit) => accounts.setQuotas(account, quotas, commit, answer)));
  });

  serve(api, routes.deleteAccount, async (c) => {
    const { account } = c.req.valid('param');
    const effect = async (once: Once | undefined): Promise<Answer> => {
      try {
        await accounts.delete(account);
      } catch (error) {
        // An earlier try of the same request got as far as that.
        if (once?.isRepeat !== true || toApiError(error).code !== 'NOT_FOUND') throw error;
      }
      return noContent;
    };
    const once = await onceRequest(c);
    return send(await globalIdempotency.runOutside(once, effect, (error) => !(error instanceof ApiError)));
  });
};

const limitsOf = (
  quotas: Readonly<Record<string, Readonly<Record<string, number | undefined>>>>,
): AccountRecord['quotas'] =>
  Object.fromEntries(
    Object.entries(quotas).map(([region, limits]) => [
      region,
      Object.fromEntries(Object.entries(limits).filter((entry): entry is [string, number] => entry[1] !== undefined)),
    ]),
  );

const serveRegions = (api: Api): void => {
  const { regions, globalIdempotency, kit } = api.manager;

  const regionView = ({ name, addresses, authority, addedAtMs }: RegionRecord) => ({
    name,
    isHere: name === kit.regionName,
    addresses,
    ...(authority !== undefined && { authority }),
    addedAt: isoTime(addedAtMs),
  });

  serve(api, routes.listRegions, async () =>
    reply(routes.listRegions, 200, { regions: (await regions.list()).map(regionView) }),
  );

  serve(api, routes.getRegion, async (c) =>
    reply(routes.getRegion, 200, regionView(await regions.get(c.req.valid('param').region))),
  );

  serve(
    api,
    routes.setRegion,
    async (c) => {
      const { region: name } = c.req.valid('param');
      const { addresses, authority } = c.req.valid('json');
      const wish = { name, addresses, ...(authority !== undefined && { authority }) };
      const answer = (region: RegionRecord): Answer => answerOf(routes.setRegion, 200, regionView(region));
      const once = await onceRequest(c);
      return send(await globalIdempotency.run(once, (commit) => regions.set(wish, commit, answer)));
    },
    { bodyBytes: 128 * 1024 },
  );

  serve(api, routes.removeRegion, async (c) => {
    const { region } = c.req.valid('param');
    const { lost } = c.req.valid('query');
    const once = await onceRequest(c);
    return send(await globalIdempotency.run(once, (commit) => regions.remove(region, lost, commit, noContent)));
  });
};

const servePrefixes = (api: Api): void => {
  const { addresses, idempotency } = api.manager;

  const prefixesView = ({ ipv4, ipv6, udp, dns }: PrefixesRecord) => ({
    ipv4,
    ipv6,
    ...(udp && { udp: { address: udp.address, first: udp.first, last: udp.last } }),
    dns,
  });

  serve(api, routes.getPrefixes, async () => reply(routes.getPrefixes, 200, prefixesView(await addresses.prefixes())));

  serve(api, routes.setPrefixes, async (c) => {
    const { udp, ...rest } = c.req.valid('json');
    const wish = { ...rest, ...(udp && { udp }) };
    const answer = (record: PrefixesRecord): Answer => answerOf(routes.setPrefixes, 200, prefixesView(record));
    const once = await onceRequest(c);
    return send(await idempotency.run(once, (commit) => addresses.set(wish, commit, answer)));
  });
};

const serveHosts = (api: Api): void => {
  const { hosts, drains, idempotency } = api.manager;

  serve(api, routes.listHosts, async () => reply(routes.listHosts, 200, { hosts: (await hosts.list()).map(hostView) }));

  serve(api, routes.showHost, async (c) => {
    const { host: name } = c.req.valid('param');
    const host = hostView(await hosts.get(name));
    return reply(routes.showHost, 200, { host, vms: await hosts.vmsOf(name, vmsShown) });
  });

  serve(api, routes.changeHost, async (c) => {
    const { host: name } = c.req.valid('param');
    const { cordoned, draining, labels } = c.req.valid('json');
    const change = {
      ...(cordoned !== undefined && { cordoned }),
      ...(draining !== undefined && { draining }),
      ...(labels && { labels }),
    };
    const once = await onceRequest(c);
    const effect = async (commit: CommitOnce): Promise<Answer> => {
      const { condition, operation, facts } = await hosts.change(name, change);
      const answer = answerOf(routes.changeHost, 200, hostView(facts));
      if (await commit({ conditions: [condition], operations: [operation] }, answer)) return answer;
      throw changedMeanwhile(name);
    };
    return send(await idempotency.run(once, effect));
  });

  serve(api, routes.drainHost, async (c) => {
    const { host } = c.req.valid('param');
    const { account } = identityOf(c);
    const accepted = (operation: OperationRecord): Answer =>
      answerOf(
        routes.drainHost,
        202,
        { operation: operationView(operation) },
        { location: `/v1/operations/${operation.id}` },
      );
    const once = await onceRequest(c);
    return send(await idempotency.run(once, (commit) => drains.begin(account, host, commit, accepted)));
  });

  serve(api, routes.removeHost, async (c) => {
    const { host: name } = c.req.valid('param');
    const once = await onceRequest(c);
    const answer = await idempotency.run(once, async (commit) => {
      if (await hosts.remove(name, (removal) => commit(removal, noContent))) return noContent;
      throw changedMeanwhile(name);
    });
    return send(answer);
  });
};

const changedMeanwhile = (host: string): ApiError =>
  new ApiError('CONFLICT', `the host "${host}" was changed at the same time; try again`, { retryAfterSeconds: 1 });
