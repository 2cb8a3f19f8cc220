/** A host, as a manager asks it over the uplink. HOST_UNAVAILABLE while it is not connected, or when its answer was lost. */
import {
  type AttachedMachine,
  type Attachment,
  type AuditCheck,
  type AuditEvent,
  type AuditFilter,
  type AuditFollowOptions,
  type AuditLink,
  type AuditPage,
  type AuditQuery,
  type Boot,
  type CallOptions,
  type ChangeOptions,
  type ConsolePort,
  type DeviceVersion,
  type FileProblem,
  type GuestInside,
  type HostPort,
  type HostStatus,
  type ShowOptions,
  type Statistics,
  type TreePort,
  type VmRef,
  walkedEntryBytes,
} from '../records/index.ts';
import type { AnswerOf, ArgsOf, Begun, Caller, ItemOf } from './calls.ts';
import { MalformedFrame } from './frames.ts';
import type { HostCalls } from './host-calls.ts';
import { RemoteRefusal, UplinkError } from './uplink-error.ts';

/** The connection to a host, of now. HOST_UNAVAILABLE, HOST_NO_VM. */
export type ToHost = (vm?: VmRef) => Caller<HostCalls> | Promise<Caller<HostCalls>>;

export class RemoteHost implements HostPort {
  readonly #caller: ToHost;

  constructor(caller: ToHost) {
    this.#caller = caller;
  }

  tree({ id, name }: VmRef): TreePort {
    const vm = { id, name };
    return {
      stat: (path, options) => this.#ask('treeStat', { vm, path }, options),
      list: (path, { signal, ...options } = {}) => this.#ask('treeList', { vm, path, ...options }, { signal }),
      read: (path, { by, signal }) => this.#ask('treeRead', { vm, path, by }, { signal }),
      walk: async (path, { by, mostBytes, signal }) => {
        const { answer, items } = await this.#begin('treeWalk', { vm, path, by, mostBytes }, signal);
        return { ...answer, entries: await Array.fromAsync(walked(items, mostBytes)) };
      },
      edit: async (edits, conditions, { once, signal } = {}) => {
        const args = { vm, edits: [...edits], conditions: [...conditions], once };
        const { dataRevisions, ...rest } = await this.#ask('treeEdit', args, { signal });
        return { ...rest, dataRevisions: new Map(dataRevisions) };
      },
      export: ({ path, by, signal }) => this.#ask('treeExport', { vm, path, by }, { signal }),
      import: (text, { signal, ...options } = {}) => this.#ask('treeImport', { vm, text, ...options }, { signal }),
      policy: (options) => this.#ask('treePolicy', { vm }, options),
      setPolicy: (text, { signal, ...options } = {}) =>
        this.#ask('treeSetPolicy', { vm, text, ...options }, { signal }),
      explain: ({ groups, ...caller }, path, options) =>
        this.#ask('treeExplain', { vm, path, caller: { ...caller, groups: groups && [...groups] } }, options),
      watch: async (path, { from, signal }) => {
        const { answer, items } = await this.#begin('treeWatch', { vm, path, from }, signal);
        return { ...answer, commits: items };
      },
      applied: (revision, { timeoutMs, signal }) => this.#ask('treeApplied', { vm, revision, timeoutMs }, { signal }),
    };
  }

  console({ id, name }: VmRef): ConsolePort {
    const vm = { id, name };
    return {
      log: ({ signal, ...options }) => this.#ask('consoleLog', { vm, ...options }, { signal }),
      stream: async ({ offset, signal }) => {
        const { answer, items } = await this.#begin('consoleStream', { vm, offset }, signal);
        return { offset: answer.offset, pieces: items };
      },
      write: async (bytes, options) => {
        await this.#ask('consoleWrite', { vm, bytes }, options);
      },
    };
  }

  checkSpec(text: string, options?: CallOptions): Promise<readonly FileProblem[]> {
    return this.#ask('checkSpec', { text }, options);
  }

  attachment({ id, name }: VmRef, machine: AttachedMachine, options?: CallOptions): Promise<Attachment> {
    return this.#ask('attachment', { vm: { id, name }, machine: { ...machine } }, options);
  }

  boot({ id, name }: VmRef, { once, signal }: ChangeOptions = {}): Promise<Boot> {
    return this.#ask('boot', { vm: { id, name }, once }, { signal });
  }

  statistics({ id, name }: VmRef, options?: CallOptions): Promise<Statistics> {
    return this.#ask('statistics', { vm: { id, name } }, options);
  }

  inside({ id, name }: VmRef, { by, signal }: ShowOptions): Promise<GuestInside> {
    return this.#ask('inside', { vm: { id, name }, by }, { signal });
  }

  renewDevice({ id, name }: VmRef, options?: CallOptions): Promise<DeviceVersion> {
    return this.#ask('renewDevice', { vm: { id, name } }, options);
  }

  audit(query: AuditQuery, options?: CallOptions): Promise<AuditPage> {
    const { after, ...filter } = query;
    return this.#ask('audit', { ...messageOf(filter), after: after && { ...after } }, options);
  }

  checkAudit(after: AuditLink | undefined, options?: CallOptions): Promise<AuditCheck> {
    return this.#ask('checkAudit', { after }, options);
  }

  async followAudit(filter: AuditFilter, { after, signal }: AuditFollowOptions): Promise<AsyncIterable<AuditEvent>> {
    return (await this.#begin('followAudit', { ...messageOf(filter), after }, signal)).items;
  }

  status(options?: CallOptions): Promise<HostStatus> {
    return this.#ask('status', null, options);
  }

  async #ask<N extends keyof HostCalls>(
    name: N,
    args: ArgsOf<HostCalls, N>,
    { signal }: CallOptions = {},
  ): Promise<AnswerOf<HostCalls, N>> {
    const caller = await this.#caller(vmOf(args));
    try {
      return await caller.ask(name, args, signal);
    } catch (error) {
      throw toRefusal(error);
    }
  }

  async #begin<N extends keyof HostCalls>(
    name: N,
    args: ArgsOf<HostCalls, N>,
    signal: AbortSignal | undefined,
  ): Promise<Begun<AnswerOf<HostCalls, N>, ItemOf<HostCalls, N>>> {
    const caller = await this.#caller(vmOf(args));
    try {
      const { answer, items } = await caller.begin(name, args, signal);
      return { answer, items: refusing(items) };
    } catch (error) {
      throw toRefusal(error);
    }
  }
}

/** No more than was asked for, whatever the host sends. MalformedFrame. */
async function* walked(
  items: AsyncIterable<ItemOf<HostCalls, 'treeWalk'>>,
  mostBytes: number,
): AsyncGenerator<ItemOf<HostCalls, 'treeWalk'>, void> {
  let [values, words] = [0, 0];
  for await (const item of items) {
    values += walkedEntryBytes + (item.bytes?.length ?? 0);
    words += item.path.length + item.rule.length;
    if (values > mostBytes || words > mostBytes)
      throw toRefusal(new MalformedFrame('more of a tree than was asked for'));
    yield item;
  }
}

/** With lists of its own. */
const messageOf = <F extends AuditFilter>({ vms, ...rest }: F) => ({
  ...rest,
  vms: vms && { names: [...vms.names], prefixes: [...vms.prefixes] },
});

const vmOf = (args: unknown): VmRef | undefined => {
  const vm = (args as { readonly vm?: VmRef | string } | null)?.vm;
  return typeof vm === 'object' ? vm : undefined;
};

async function* refusing<T>(items: AsyncIterable<T>): AsyncGenerator<T, void> {
  try {
    yield* items;
  } catch (error) {
    throw toRefusal(error);
  }
}

/** Who asks hosts knows only what hosts say. */
const toRefusal = (error: unknown): unknown => {
  if (!(error instanceof UplinkError || error instanceof MalformedFrame)) return error;
  const words =
    error.code === 'UPLINK_LOST'
      ? 'the connection to the host ended before its answer came, and whether it did what was asked is not known; try again'
      : `the host cannot do that: ${error.message}`;
  return new RemoteRefusal('HOST_UNAVAILABLE', words);
};
