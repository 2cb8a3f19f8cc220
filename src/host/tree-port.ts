/** One VM's tree, as managers see it: from outside, past all access rules of the guest. */
import { setImmediate as turn } from 'node:timers/promises';
import {
  type FileProblem,
  type Once,
  type TreeAnswer,
  type TreeCommit,
  type TreeCondition,
  type TreeEdit,
  type TreeEntry,
  type TreePort,
  walkedEntryBytes,
} from '../records/index.ts';
import {
  type Caller,
  CHANGES_NAME,
  type Explanation,
  explain,
  type Node,
  Replica,
  type Spec,
  ways,
} from '../tree/index.ts';
import { S_IFDIR, S_IFLNK, S_IFMT } from '../wire/index.ts';
import { entriesOf } from './export-tree.ts';
import { type ExportEntry, exportPolicyYaml } from './export-yaml.ts';
import { HostRefusal } from './host-error.ts';
import type { LoadedSpec } from './spec-file.ts';
import type { SpecProblem } from './spec-problem.ts';
import { SpecTexts } from './spec-texts.ts';
import type { VmTree } from './vm-tree.ts';

const listed = 1000;
/** Of a tree that is read whole, before others have their turn. */
const nodesInTurn = 256;

interface CallOptions {
  readonly signal?: AbortSignal | undefined;
}

interface ShowOptions extends CallOptions {
  readonly by: string | undefined;
}

interface ChangeOptions {
  readonly once?: Once | undefined;
}

/** `TreePort` over the tree of a VM. */
export class VmTreePort implements TreePort {
  readonly #find: () => VmTree;
  readonly #texts: SpecTexts;

  /** `find` is asked at each call, and throws when the VM is not there. */
  constructor(find: () => VmTree, texts = new SpecTexts()) {
    this.#find = find;
    this.#texts = texts;
  }

  get #tree(): VmTree {
    return this.#find();
  }

  async stat(path: string): Promise<TreeAnswer & { readonly entry: TreeEntry }> {
    return { ...this.#answer(), entry: this.#entry(this.#node(path)) };
  }

  async list(
    path: string,
    options: { readonly after?: string | undefined; readonly limit?: number | undefined } = {},
  ): Promise<TreeAnswer & { readonly entries: readonly TreeEntry[]; readonly more: boolean }> {
    const { snapshot } = this.#tree.replica;
    const directory = this.#node(path);
    if (typeOf(directory) !== 'directory')
      throw new HostRefusal('HOST_NOT_DIRECTORY', `listing "${path}" failed: it is a ${typeOf(directory)}`);
    const { after, limit = listed } = options;
    const entries: TreeEntry[] = [];
    for (const [name, ino] of snapshot.entries(directory.ino)) {
      if (after !== undefined && name <= after) continue;
      if (entries.length === limit) return { ...this.#answer(), entries, more: true };
      entries.push(this.#entry(snapshot.node(ino)!));
    }
    return { ...this.#answer(), entries, more: false };
  }

  async read(
    path: string,
    { by }: ShowOptions,
  ): Promise<TreeAnswer & { readonly entry: TreeEntry; readonly bytes: Uint8Array }> {
    const node = this.#node(path);
    if (typeOf(node) === 'directory')
      throw new HostRefusal('HOST_IS_DIRECTORY', `reading "${path}" failed: it is a directory`);
    if (node.burned)
      throw new HostRefusal('HOST_BURNED', `reading "${path}" failed: a rule says "once", and it has been read`);
    if (by !== undefined && isHidden(this.#tree.replica, node)) this.#tree.recordShown([node], 'read', by);
    return { ...this.#answer(), entry: this.#entry(node), bytes: node.bytes ?? new Uint8Array(0) };
  }

  async walk(
    path: string,
    options: ShowOptions & { readonly mostBytes: number },
  ): Promise<TreeAnswer & { readonly entries: readonly (TreeEntry & { readonly bytes?: Uint8Array })[] }> {
    const { mostBytes, by, signal } = options;
    const tree = this.#tree;
    const { epoch } = tree;
    const still = stillOf(tree.replica);
    const entries: (TreeEntry & { readonly bytes?: Uint8Array })[] = [];
    const nodes: Node[] = [];
    let left = mostBytes;
    for await (const node of inTurns(still.snapshot.descendants(this.#node(path)), signal)) {
      const { bytes } = node;
      left -= walkedEntryBytes + (bytes?.length ?? 0);
      if (left < 0) {
        const what = `what lies below "${path}" has more than ${mostBytes} bytes, counting ${walkedEntryBytes} for each entry; ask for a smaller part`;
        throw new HostRefusal('HOST_TOO_LARGE', what);
      }
      nodes.push(node);
      entries.push({ ...entryOf(still, node), ...(bytes !== undefined && !node.burned && { bytes }) });
    }
    await show(tree, still, nodes, 'read', { by, signal });
    return { epoch, revision: still.snapshot.revision, entries };
  }

  async edit(
    edits: readonly TreeEdit[],
    conditions: readonly TreeCondition[],
    { once }: ChangeOptions = {},
  ): ReturnType<TreePort['edit']> {
    const { revision, changes, dataRevisions } = await this.#tree.edit(edits, conditions, once);
    return { ...this.#answer(), revision, changes, dataRevisions };
  }

  async export(
    options: ShowOptions & { readonly path?: string | undefined },
  ): Promise<TreeAnswer & { readonly text: string }> {
    const { path = '/' } = options;
    const tree = this.#tree;
    const { epoch } = tree;
    const still = stillOf(tree.replica);
    await show(tree, still, still.snapshot.descendants(this.#node(path)), 'export', options);
    const entries: ExportEntry[] = [];
    for await (const entry of inTurns(entriesOf(still, path), options.signal)) entries.push(entry);
    const text = await this.#texts.write({ entries, ...(path === '/' && { policy: still.policy.spec }) });
    return { epoch, revision: still.snapshot.revision, text };
  }

  async import(
    text: string,
    options: ChangeOptions & { readonly ifRevision?: number | undefined } = {},
  ): Promise<TreeAnswer & { readonly changes: number; readonly warnings: readonly FileProblem[] }> {
    const { spec, warnings } = checkedSpec(await this.#texts.readSpec(text));
    const { revision, changes } = await this.#tree.load(spec, options.ifRevision, options.once);
    return { ...this.#answer(), revision, changes, warnings };
  }

  async policy(): Promise<TreeAnswer & { readonly text: string; readonly policyRevision: number }> {
    const { policy } = this.#tree.replica;
    return { ...this.#answer(), text: exportPolicyYaml(policy.spec), policyRevision: this.#tree.policyRevision };
  }

  async setPolicy(
    text: string,
    options: ChangeOptions & { readonly ifRevision?: number | undefined } = {},
  ): Promise<TreeAnswer & { readonly policyRevision: number; readonly warnings: readonly FileProblem[] }> {
    const { policy, problems } = await this.#texts.readPolicy(text);
    if (policy === undefined) throw refusalOf('the policy', problems);
    const { revision, policyRevision } = await this.#tree.setPolicy(policy, options.ifRevision, options.once);
    return { ...this.#answer(), revision, policyRevision, warnings: problems.map(toProblem) };
  }

  async explain(caller: Caller, path: string): Promise<TreeAnswer & { readonly explanation: Explanation }> {
    const explanation = explain(this.#tree.replica, ways.virtiofs, this.#node(path), caller, Date.now());
    return { ...this.#answer(), explanation };
  }

  async watch(
    path: string,
    options: CallOptions & { readonly from?: number | undefined },
  ): Promise<TreeAnswer & { readonly commits: AsyncIterable<TreeCommit> }> {
    const answer = this.#answer();
    const commits = this.#tree.history.watch(path, options.from, options.signal);
    // Who comes back before the first commit goes on from here.
    return { ...answer, ...(options.from !== undefined && { revision: options.from - 1 }), commits };
  }

  async applied(revision: number, options: { readonly timeoutMs: number }): Promise<readonly string[]> {
    return this.#tree.applied(revision, options.timeoutMs);
  }

  #answer(): TreeAnswer {
    return { epoch: this.#tree.epoch, revision: this.#tree.replica.snapshot.revision };
  }

  #node(path: string): Node {
    const { snapshot } = this.#tree.replica;
    const node = snapshot.resolve(path);
    if (node !== undefined) return node;
    for (let end = path.lastIndexOf('/'); end > 0; end = path.lastIndexOf('/', end - 1)) {
      const above = snapshot.resolve(path.slice(0, end));
      if (above === undefined || typeOf(above) === 'directory') continue;
      throw new HostRefusal('HOST_NOT_DIRECTORY', `there is no "${path}": "${path.slice(0, end)}" is no directory`);
    }
    throw new HostRefusal('HOST_NOT_FOUND', `there is nothing at "${path}"`);
  }

  #entry(node: Node): TreeEntry {
    return entryOf(this.#tree.replica, node);
  }
}

/** As a tree is now, for whoever takes several turns to read it. */
const stillOf = (replica: Replica): Replica => {
  const still = new Replica();
  still.become(replica);
  return still;
};

async function* inTurns<T>(all: Iterable<T>, signal: AbortSignal | undefined): AsyncGenerator<T> {
  let count = 0;
  for (const one of all) {
    yield one;
    if (++count % nodesInTurn === 0) await turn(undefined, { signal });
  }
}

/** Records who is shown what not everybody may read. */
const show = async (
  tree: VmTree,
  still: Replica,
  nodes: Iterable<Node>,
  operation: 'read' | 'export',
  { by, signal }: ShowOptions,
): Promise<void> => {
  if (by === undefined) return;
  let hidden: Node[] = [];
  for await (const node of inTurns(nodes, signal)) {
    if (isHidden(still, node)) hidden.push(node);
    if (hidden.length < nodesInTurn) continue;
    tree.recordShown(hidden, operation, by, still);
    hidden = [];
  }
  tree.recordShown(hidden, operation, by, still);
};

const isHidden = (replica: Replica, node: Node): boolean => {
  if (typeOf(node) === 'directory' || node.burned) return false;
  const { path, worldReadable } = entryOf(replica, node);
  return !worldReadable && path !== `/${CHANGES_NAME}`;
};

const entryOf = (replica: Replica, node: Node): TreeEntry => {
  const { caching, effective } = replica.facts(node);
  return {
    path: replica.snapshot.path(node),
    kind: typeOf(node),
    madeBy: node.madeBy,
    sizeBytes: node.sizeBytes,
    dataRevision: node.dataRevision,
    revision: node.revision,
    uid: node.uid,
    gid: node.gid,
    mode: node.mode & 0o7777,
    mtimeMs: node.mtime.sec * 1000 + Math.floor(node.mtime.nsec / 1e6),
    worldReadable: (node.mode & 0o004) !== 0 && !effective.special && caching !== 'private',
    burned: node.burned,
    rule: ruleOf(effective.rule),
  };
};

const ruleOf = (rule: { readonly path: string } | undefined): string => rule?.path ?? 'default';

const typeOf = ({ mode }: Node): TreeEntry['kind'] => {
  const type = mode & S_IFMT;
  if (type === S_IFDIR) return 'directory';
  return type === S_IFLNK ? 'symlink' : 'file';
};

/** HOST_INVALID with the problems. */
export const checkedSpec = ({
  spec,
  problems,
}: LoadedSpec): { readonly spec: Spec; readonly warnings: readonly FileProblem[] } => {
  if (spec === undefined) throw refusalOf('the spec', problems);
  return { spec, warnings: problems.map(toProblem) };
};

/** Says what is wrong with the text of a spec, as `HostPort.checkSpec`. */
export const specChecker =
  (texts = new SpecTexts()) =>
  async (text: string): Promise<readonly FileProblem[]> =>
    (await texts.readSpec(text)).problems.map(toProblem);

export const toProblem = ({ severity, line, column, path, what, fix }: SpecProblem): FileProblem => ({
  severity,
  line,
  column,
  path,
  what,
  fix,
});

const refusalOf = (what: string, problems: readonly SpecProblem[]): HostRefusal => {
  const first = problems.find(({ severity }) => severity === 'error');
  const where = first === undefined ? '' : ` (line ${first.line}: ${first.what})`;
  return new HostRefusal('HOST_INVALID', `${what} is wrong${where}; nothing was changed`, {
    problems: problems.map(toProblem),
  });
};
