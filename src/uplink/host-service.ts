/** Answers what managers ask of a host, by its `HostPort`. */
import type { HostPort } from '../records/index.ts';
import type { Handlers } from './calls.ts';
import type { HostCalls } from './host-calls.ts';

export const hostHandlers = (host: HostPort): Handlers<HostCalls> => ({
  treeStat: ({ vm, path }, { signal }) => host.tree(vm).stat(path, { signal }),
  treeList: async ({ vm, path, ...options }, { signal }) => {
    const { entries, ...rest } = await host.tree(vm).list(path, { ...options, signal });
    return { ...rest, entries: [...entries] };
  },
  treeRead: ({ vm, path, by }, { signal }) => host.tree(vm).read(path, { by, signal }),
  treeWalk: async ({ vm, path, by, mostBytes }, { signal }) => {
    const { epoch, revision, entries } = await host.tree(vm).walk(path, { by, mostBytes, signal });
    return { answer: { epoch, revision }, items: each(entries) };
  },
  treeEdit: async ({ vm, edits, conditions, once }, { signal }) => {
    const { dataRevisions, ...rest } = await host.tree(vm).edit(edits, conditions, { once, signal });
    return { ...rest, dataRevisions: [...dataRevisions] };
  },
  treeExport: ({ vm, path, by }, { signal }) => host.tree(vm).export({ path, by, signal }),
  treeImport: async ({ vm, text, ...options }, { signal }) => {
    const { warnings, ...rest } = await host.tree(vm).import(text, { ...options, signal });
    return { ...rest, warnings: [...warnings] };
  },
  treePolicy: ({ vm }, { signal }) => host.tree(vm).policy({ signal }),
  treeSetPolicy: async ({ vm, text, ...options }, { signal }) => {
    const { warnings, ...rest } = await host.tree(vm).setPolicy(text, { ...options, signal });
    return { ...rest, warnings: [...warnings] };
  },
  treeExplain: async ({ vm, caller, path }, { signal }) => {
    const { explanation, ...rest } = await host.tree(vm).explain(caller, path, { signal });
    return { ...rest, explanation: { ...explanation, keys: [...explanation.keys] } };
  },
  treeView: ({ vm, caller, ...options }, { signal }) => host.tree(vm).view(caller, { ...options, signal }) as never,
  treeComparePolicy: ({ vm, policy, ...page }, { signal }) =>
    host.tree(vm).comparePolicy(policy, { ...page, signal }) as never,
  treeWatch: async ({ vm, path, from }, { signal }) => {
    const { epoch, revision, commits } = await host.tree(vm).watch(path, { from, signal });
    return { answer: { epoch, revision }, items: mapped(commits, (c) => ({ ...c, changes: [...c.changes] })) };
  },
  treeApplied: async ({ vm, revision, timeoutMs }, { signal }) => [
    ...(await host.tree(vm).applied(revision, { timeoutMs, signal })),
  ],
  consoleLog: ({ vm, ...options }, { signal }) => host.console(vm).log({ ...options, signal }),
  consoleStream: async ({ vm, offset: from }, { signal }) => {
    const { offset, pieces } = await host.console(vm).stream({ offset: from, signal });
    return { answer: { offset }, items: pieces };
  },
  consoleWrite: async ({ vm, bytes }, { signal }) => {
    await host.console(vm).write(bytes, { signal });
    return null;
  },
  checkSpec: async ({ text }, { signal }) => [...(await host.checkSpec(text, { signal }))],
  attachment: ({ vm, machine }, { signal }) => host.attachment(vm, machine, { signal }) as never,
  boot: ({ vm, once }, { signal }) => host.boot(vm, { once, signal }),
  statistics: ({ vm }, { signal }) => host.statistics(vm, { signal }),
  inside: ({ vm, by }, { signal }) => host.inside(vm, { by, signal }) as never,
  renewDevice: ({ vm }, { signal }) => host.renewDevice(vm, { signal }),
  audit: async (query, { signal }) => {
    const { events, next } = await host.audit(query, { signal });
    return { events: [...events], next };
  },
  checkAudit: async ({ after }, { signal }) => {
    const { problems, ...rest } = await host.checkAudit(after, { signal });
    return { ...rest, problems: [...problems] };
  },
  followAudit: async ({ after, ...filter }, { signal }) => ({
    answer: null,
    items: await host.followAudit(filter, { after, signal }),
  }),
  status: async (_, { signal }) => {
    const { warnings, vms, ...rest } = await host.status({ signal });
    return { ...rest, warnings: [...warnings], vms: [...vms] };
  },
});

async function* each<T>(values: Iterable<T>): AsyncGenerator<T, void> {
  yield* values;
}

async function* mapped<T, U>(values: AsyncIterable<T>, map: (value: T) => U): AsyncGenerator<U, void> {
  for await (const value of values) yield map(value);
}
