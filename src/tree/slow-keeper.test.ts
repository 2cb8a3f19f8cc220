import assert from 'node:assert/strict';
import { test } from 'node:test';
import fc from 'fast-check';
import { aimed, edit, editCondition, mutation, specs } from '../../test/tree/histories.ts';
import { checkTree, nodesOf } from '../../test/tree/invariants.ts';
import { app, root, SlowKeeper } from '../../test/tree/keepers.ts';
import { commitNow, digest, specOf, TestClock, type WorldSpec } from '../../test/tree/world.ts';
import { EIO, ENOENT, ENOSPC, S_IFMT } from '../wire/index.ts';
import { Authority, type AuthorityOptions, type Edited, type Loaded } from './authority.ts';
import { type Way, ways } from './caller.ts';
import { APPLIED_KEPT, type Commit } from './commit.ts';
import type { Change } from './delta.ts';
import { type Edit, type EditCondition, TreeError } from './edit.ts';
import type { Mutation, Outcome } from './mutation.ts';
import type { Node } from './node.ts';
import { Replica } from './replica.ts';

type Step =
  | { readonly mutation: Mutation; readonly way: Way; readonly holder: string }
  | { readonly load: WorldSpec }
  | { readonly edits: readonly Edit[]; readonly conditions: readonly EditCondition[] }
  /** What the store does with the batch that it has; when it crashes, the host daemon does too. */
  /** What has gathered is given to the store. */
  | 'gathered'
  | 'kept'
  | 'failed'
  | 'crashed before'
  | 'crashed after';

const holders = ['holder 0', 'holder 1'] as const;
const step: fc.Arbitrary<Step> = fc.oneof(
  {
    weight: 30,
    arbitrary: fc.record({
      mutation,
      way: fc.constantFrom<Way>(ways.direct, ways.virtiofs, ways.mount),
      holder: fc.constantFrom(...holders),
    }),
  },
  { weight: 1, arbitrary: fc.record({ load: fc.constantFrom(...specs) }) },
  {
    weight: 3,
    arbitrary: fc.record({
      edits: fc.array(edit, { minLength: 1, maxLength: 3 }),
      conditions: fc.array(editCondition, { maxLength: 1 }),
    }),
  },
  { weight: 18, arbitrary: fc.constantFrom('gathered' as const, 'kept' as const) },
  { weight: 1, arbitrary: fc.constantFrom('failed' as const, 'crashed before' as const, 'crashed after' as const) },
);

interface Asked {
  readonly nowMs: number;
  readonly mutation?: Mutation;
  readonly way?: Way;
  readonly holder?: string;
  readonly sequence?: number;
  readonly spec?: WorldSpec;
  readonly loaded?: Loaded;
  readonly edits?: readonly Edit[];
  readonly conditions?: readonly EditCondition[];
  edited?: Edited;
  refusal?: string;
  /** A drop of what the holder could have open. */
  readonly drops?: boolean;
  outcome?: Outcome;
}

const failed: Outcome = { errno: EIO, revision: 0, ino: 0 };
let succeeded = 0;
let refused = 0;
let edited = 0;

/** An authority whose keeper is slow, and one without a keeper, which is given only what the other has kept. */
class Pair {
  readonly clock = new TestClock();
  readonly modelClock = new TestClock();
  readonly keeper = new SlowKeeper();
  /** Gives what has gathered to the keeper. */
  gathered: (() => void) | undefined;
  readonly #gathers: boolean;
  readonly model: Authority;
  authority: Authority;
  replicas: Replica[] = [];
  /** What is not answered yet, in the order in which it was asked. */
  asked: Asked[] = [];
  #sequence = 0;
  readonly #modelInos = new Map<number, number>();
  readonly #seenInos = new Map<number, number>();
  #seenRevision = 0;
  #modelHolders: (() => void)[] = [];

  constructor(gathers: boolean) {
    this.#gathers = gathers;
    const options = { vm: 'test', digest, audit: () => true };
    this.model = new Authority({ ...options, wallMs: this.modelClock.wallMs });
    this.authority = this.#start();
  }

  #start(): Authority {
    const { keeper, clock } = this;
    const authority = new Authority({
      vm: 'test',
      digest,
      audit: () => true,
      wallMs: clock.wallMs,
      persist: keeper.persist,
      ...(this.#gathers && {
        gather: (start: () => void) => {
          assert.equal(this.gathered, undefined, 'gathers once');
          this.gathered = start;
        },
      }),
      ...(keeper.revision > 0 && { restored: keeper.restored }),
    });
    this.replicas = holders.map((holder) => {
      const replica = new Replica();
      authority.subscribe(holder, (delta) => replica.apply(delta));
      return replica;
    });
    // Nobody has anything open any more.
    for (const leave of this.#modelHolders) leave();
    this.#modelHolders = holders.map((holder) => this.model.subscribe(holder, () => {}));
    return authority;
  }

  async run(step: Step): Promise<void> {
    this.clock.advance(1);
    if (typeof step === 'object' && 'load' in step) this.load(step.load);
    else if (typeof step === 'object' && 'edits' in step) this.edit(step.edits, step.conditions);
    else if (typeof step === 'object') {
      this.commit(aimed(this.authority.snapshot, step.mutation), step.way, step.holder, ++this.#sequence);
    } else if (step === 'gathered') this.start();
    else if (step === 'kept') this.keeper.succeed();
    else if (step === 'failed') this.keeper.fail();
    else await this.crash(step === 'crashed after');
    await this.settled();
  }

  start(): void {
    const start = this.gathered;
    this.gathered = undefined;
    start?.();
  }

  load(spec: WorldSpec): void {
    const loaded = this.authority.load(specOf(spec));
    const asked: Asked = { nowMs: this.clock.nowMs, spec, loaded };
    this.asked.push(asked);
    const answer = (outcome: Outcome) => (asked.outcome ??= outcome);
    loaded.durable.then(
      () => answer({ errno: 0, revision: loaded.revision, ino: 0 }),
      () => answer(failed),
    );
  }

  edit(edits: readonly Edit[], conditions: readonly EditCondition[]): void {
    const asked: Asked = { nowMs: this.clock.nowMs, edits, conditions };
    this.asked.push(asked);
    this.authority.edit(edits, conditions).then(
      (edited) => {
        asked.edited = edited;
        return (asked.outcome = { errno: 0, revision: edited.revision, ino: 0 });
      },
      (error: unknown) => {
        assert.ok(error instanceof TreeError, String(error));
        asked.refusal = error.code;
        return (asked.outcome = error.code === 'NOT_KEPT' ? failed : { errno: 1, revision: 0, ino: 0 });
      },
    );
  }

  commit(mutation: Mutation, way: Way, holder: string, sequence: number): void {
    const drops = mutation.op === 'drop' && this.authority.snapshot.node(mutation.ino)?.parentIno === 0;
    const asked: Asked = { nowMs: this.clock.nowMs, mutation, way, holder, sequence, drops };
    this.asked.push(asked);
    this.authority.commit(mutation, way, holder, sequence, (outcome) => {
      assert.equal(asked.outcome, undefined, 'settled once');
      asked.outcome = outcome;
    });
  }

  /** Lets promises settle, and gives the model what has been kept. */
  async settled(): Promise<void> {
    await new Promise(setImmediate);
    while (this.asked[0]?.outcome !== undefined) await this.replay(this.asked.shift()!);
    for (const asked of this.asked) assert.equal(asked.outcome, undefined, 'answered before what was asked earlier');
  }

  async replay(asked: Asked): Promise<void> {
    const { nowMs, mutation, way, holder, spec, loaded, edits, conditions, drops, outcome } = asked;
    this.modelClock.nowMs = nowMs;
    if (mutation?.op === 'drop') {
      if (drops) commitNow(this.model, this.#forModel(mutation), way!, holder!);
    } else if (outcome!.errno === EIO) {
      refused++;
    } else if (mutation !== undefined) {
      const { errno, ino, bytes } = commitNow(this.model, this.#forModel(mutation), way!, holder!);
      assert.equal(outcome!.errno, errno, `${mutation.op} without a slow keeper`);
      assert.deepEqual(outcome!.bytes, bytes);
      if (ino !== 0) this.#modelInos.set(outcome!.ino, ino);
      if (errno === 0) succeeded++;
    } else if (edits === undefined) {
      this.#sameInos(loaded!.changes, this.model.load(specOf(spec!)).changes);
    } else {
      try {
        const { changes, dataRevisions } = await this.model.edit(edits, conditions);
        edited++;
        assert.equal(asked.refusal, undefined);
        this.#sameInos(asked.edited!.changes, changes);
        assert.deepEqual([...asked.edited!.dataRevisions.keys()], [...dataRevisions.keys()]);
      } catch (error) {
        assert.ok(error instanceof TreeError, String(error));
        assert.equal(asked.refusal, error.code);
      }
    }
  }

  /** An edit that nobody was told the outcome of: refused, without an effect, or the first of these commits. */
  async #replayUntold({ nowMs, edits, conditions }: Asked, commits: Commit[]): Promise<void> {
    this.modelClock.nowMs = nowMs;
    const before = this.model.snapshot;
    await this.model.edit(edits!, conditions).catch((error: unknown) => assert.ok(error instanceof TreeError));
    if (this.model.snapshot === before) return;
    for (const { node } of commits.shift()!.put) {
      const twin = this.model.snapshot.child(this.#modelInos.get(node.parentIno) ?? node.parentIno, node.name);
      if (twin !== undefined) this.#modelInos.set(node.ino, twin.ino);
    }
  }

  #sameInos(changes: readonly Change[], modelChanges: readonly Change[]): void {
    const known = new Map(modelChanges.map(({ path, what, ino }) => [`${what} ${path}`, ino]));
    for (const { path, what, ino } of changes) this.#modelInos.set(ino, known.get(`${what} ${path}`)!);
  }

  /** The same mutation of the model's nodes; of none for a number that only the model has given out. */
  #forModel(mutation: Mutation): Mutation {
    const inoOf = (ino: number) =>
      this.#modelInos.get(ino) ?? (this.model.snapshot.node(ino) === undefined ? ino : 2 ** 45 + ino);
    return {
      ...mutation,
      ...('ino' in mutation && { ino: inoOf(mutation.ino) }),
      ...('parentIno' in mutation && { parentIno: inoOf(mutation.parentIno) }),
      ...('newParentIno' in mutation && { newParentIno: inoOf(mutation.newParentIno) }),
    } as Mutation;
  }

  /** The host daemon is killed while the store had a batch; the device processes send again what they have no answer for. */
  async crash(landed: boolean): Promise<void> {
    const { batch } = this.keeper;
    const sequences = new Set(landed ? batch.map(({ applied }) => applied?.sequence) : []);
    const revisions = new Set(landed ? batch.map(({ revision }) => revision) : []);
    if (landed) this.keeper.land();
    else this.keeper.lose();
    this.gathered = undefined;
    const unanswered = this.asked;
    this.asked = [];
    const again: Asked[] = [];
    const loads = new Set(unanswered.map(({ loaded }) => loaded?.revision));
    const ofEdits = landed
      ? batch.filter(({ applied, revision }) => applied === undefined && !loads.has(revision))
      : [];
    for (const asked of unanswered) {
      const { mutation, sequence, loaded, edits } = asked;
      if (mutation?.op === 'drop') continue;
      if (edits !== undefined) {
        if (ofEdits.length > 0) await this.#replayUntold(asked, ofEdits);
        continue;
      }
      if (loaded !== undefined) {
        if (revisions.has(loaded.revision))
          await this.replay({ ...asked, outcome: { errno: 0, revision: loaded.revision, ino: 0 } });
      } else if (sequences.has(sequence)) {
        const { outcome } = batch.find(({ applied }) => applied?.sequence === sequence)!.applied!;
        await this.replay({ ...asked, outcome });
        again.push({ ...asked, outcome });
      } else again.push(asked);
    }
    this.authority = this.#start();
    for (const { mutation, way, holder, sequence, outcome } of again) {
      if (outcome === undefined) this.commit(mutation!, way!, holder!, sequence!);
      else {
        const answers: Outcome[] = [];
        this.authority.commit(mutation!, way!, holder!, sequence, (answer) => answers.push(answer));
        assert.deepEqual(answers, [outcome], 'what was kept is answered, and not applied twice');
      }
    }
  }

  check(): void {
    const { authority, model } = this;
    checkTree(authority.replica, { holdsOnceBytes: true });
    const { revision } = authority.snapshot;
    assert.ok(revision >= this.#seenRevision);
    this.#seenRevision = revision;
    const expected = nodesOf(authority.replica);
    for (const replica of this.replicas) {
      assert.deepEqual(nodesOf(replica), expected);
      assert.equal(replica.snapshot.revision, revision);
      assert.deepEqual(replica.usage, authority.replica.usage);
    }
    assert.deepEqual(authority.replica.usage, model.replica.usage);
    const plain = (node: Node) => ({ ...node, ino: 0, parentIno: 0, revision: 0, dataRevision: 0 });
    assert.equal(authority.snapshot.nodes.size, model.snapshot.nodes.size);
    for (const node of authority.snapshot.nodes.values()) {
      const twin = model.snapshot.node(this.#modelInos.get(node.ino) ?? node.ino);
      assert.ok(twin !== undefined, `${authority.snapshot.path(node)} is not the model's`);
      assert.deepEqual(plain(node), plain(twin));
      assert.equal(authority.snapshot.path(node), model.snapshot.path(twin));
      assert.equal(this.#seenInos.get(node.ino) ?? node.mode & S_IFMT, node.mode & S_IFMT, 'a number was used again');
      this.#seenInos.set(node.ino, node.mode & S_IFMT);
    }
  }
}

test('Authority does what one without a keeper does when its keeper is slow, fails, or crashes with it', async () => {
  await fc.assert(
    fc.asyncProperty(
      fc.array(step, { minLength: 10, maxLength: 100, size: 'max' }),
      fc.boolean(),
      async (steps, gathers) => {
        const pair = new Pair(gathers);
        pair.load(specs[0]!);
        pair.start();
        pair.keeper.succeed();
        await pair.settled();
        for (const step of steps) {
          await pair.run(step);
          pair.check();
        }
        for (let rounds = 0; pair.keeper.batch.length > 0 || pair.gathered !== undefined; rounds++) {
          assert.ok(rounds <= steps.length);
          pair.start();
          await pair.run('kept');
        }
        assert.deepEqual(pair.asked, [], 'everything is answered in the end');
        pair.check();
      },
    ),
    { numRuns: 200 },
  );
  assert.ok(succeeded >= 200, `${succeeded} mutations succeeded only`);
  assert.ok(edited >= 100, `${edited} edits succeeded only`);
  assert.ok(refused >= 20, `${refused} mutations were refused only because they could not be kept`);
});

/** One tree, its slow keeper, and a shorthand to ask for things in /guest. */
async function begin(content: WorldSpec = { content: { guest: {} } }, more: Pick<AuthorityOptions, 'errnoOf'> = {}) {
  const keeper = new SlowKeeper();
  const clock = new TestClock();
  const options = { vm: 'test', digest, audit: () => true, wallMs: clock.wallMs, persist: keeper.persist, ...more };
  const authority = new Authority(options);
  const turn = () => new Promise(setImmediate);
  const { durable } = authority.load(specOf(content));
  keeper.succeed();
  await durable;
  const parentIno = authority.snapshot.resolve('/guest')!.ino;
  const answers: string[] = [];
  let sequence = 0;
  const commit = (mutation: Mutation, told: (outcome: Outcome) => void, holder = 'holder', number = ++sequence) =>
    authority.commit(mutation, ways.direct, holder, number, told);
  const tell = (name: string) => (outcome: Outcome) => answers.push(`${name} ${outcome.errno}`);
  const create = (name: string, told = tell(name)) =>
    commit({ op: 'create', caller: app, parentIno, name, mode: 0o600, umask: 0 }, told);
  const unlink = (name: string, told = tell(name)) => commit({ op: 'unlink', caller: app, parentIno, name }, told);
  const answered = () => answers.splice(0);
  return { keeper, options, authority, turn, parentIno, commit, tell, create, unlink, answered };
}

test('commit gathers into one batch what comes while another is being kept, and answers in order', async () => {
  const { keeper, authority, turn, create, answered } = await begin();
  for (const name of ['a', 'b', 'b', 'c']) create(name);
  assert.equal(keeper.batch.length, 1);
  const settled = authority.settled().then((failure) => [failure, ...answered()]);
  keeper.succeed();
  await turn();
  assert.deepEqual(answered(), ['a 0'], 'a refusal that follows from what is not kept waits as well');
  assert.equal(keeper.batch.length, 2);
  assert.equal(authority.snapshot.resolve('/guest/b'), undefined);
  keeper.succeed();
  await turn();
  assert.deepEqual(await settled, [undefined, 'b 0', 'b 17', 'c 0']);
  assert.equal(await authority.settled(), undefined);
  create('c');
  assert.deepEqual(answered(), ['c 17'], 'nothing is under way: a refusal is answered at once');
});

test('commit answers with the errno that is named for what could not be kept', async () => {
  const { keeper, create, answered } = await begin(undefined, {
    errnoOf: ({ message }) => (/full/.test(message) ? ENOSPC : EIO),
  });
  create('a');
  create('a');
  keeper.fail();
  await new Promise(setImmediate);
  assert.deepEqual(answered(), [`a ${ENOSPC}`, `a ${ENOSPC}`]);
});

test('commit refuses all that was decided on what could not be kept, and gives out no number twice', async () => {
  const { keeper, authority, turn, create, answered, unlink } = await begin();
  const { revision } = authority.snapshot;
  const { usage } = authority.replica;
  create('a');
  const [first] = keeper.batch[0]!.put.map(({ node }) => node.ino);
  create('b');
  create('a');
  unlink('a');
  const { durable } = authority.load(specOf({ content: { guest: {}, instance: { id: 'x' } } }));
  keeper.fail();
  await assert.rejects(durable, /disk is full/);
  assert.deepEqual(answered(), [`a ${EIO}`, `b ${EIO}`, `a ${EIO}`, `a ${EIO}`]);
  assert.match(authority.persistFailure!.message, /disk is full/);
  assert.equal(authority.snapshot.revision, revision);
  create('a');
  unlink('b');
  const [commit] = keeper.batch;
  keeper.succeed();
  await turn();
  assert.deepEqual(answered(), ['a 0', `b ${ENOENT}`]);
  assert.equal(authority.persistFailure, undefined);
  assert.ok(commit!.revision > revision + 3, 'revisions of what was refused are not given out again');
  assert.ok(commit!.put.some(({ node }) => node.ino > first!));
  assert.equal(authority.replica.usage.nodes, usage.nodes + 1);
});

test('burn releases a value when that is kept, and leaves it to the next when it could not be', async () => {
  const rules = [{ path: '/secrets/one', mode: 0o444, once: true }];
  const { keeper, authority, turn, commit } = await begin({ content: { guest: {}, secrets: { one: 'value' } }, rules });
  const { ino } = authority.snapshot.resolve('/secrets/one')!;
  const got: (string | number)[] = [];
  const burn = () =>
    commit({ op: 'burn', caller: root, ino }, ({ errno, bytes }) =>
      got.push(bytes === undefined ? errno : new TextDecoder().decode(bytes)),
    );
  burn();
  burn();
  await turn();
  assert.deepEqual(got, []);
  keeper.fail();
  await turn();
  assert.deepEqual(got.splice(0), [EIO, EIO]);
  burn();
  burn();
  keeper.succeed();
  await turn();
  assert.deepEqual(got, ['value', 13]);
});

test('a mutation that is sent again is answered from the last ones of its holder, until that is forgotten', async () => {
  const { keeper, options, authority, turn, commit, parentIno, answered, tell } = await begin();
  const create = (number: number, holder = 'holder', at = authority) =>
    at.commit(
      { op: 'create', caller: app, parentIno, name: `f${number}`, mode: 0o600, umask: 0 },
      ways.direct,
      holder,
      number,
      tell(`f${number}`),
    );
  create(1);
  create(1);
  assert.deepEqual(answered(), []);
  keeper.succeed();
  await turn();
  assert.deepEqual(answered(), ['f1 0', 'f1 0'], 'both are told, when it is kept');
  create(1);
  assert.deepEqual(answered(), ['f1 0']);
  create(1, 'another');
  assert.deepEqual(answered(), ['f1 17'], 'sequences are each holder’s own');
  const again = new Authority({ ...options, restored: keeper.restored });
  create(1, 'holder', again);
  assert.deepEqual(answered(), ['f1 0']);
  for (let number = 2; number <= APPLIED_KEPT + 1; number++) {
    create(number);
    keeper.succeed();
    await turn();
  }
  answered();
  create(2);
  create(1);
  assert.deepEqual(answered(), ['f2 0', 'f1 17'], 'the last ones are remembered, and the first is not any more');
  assert.deepEqual(authority.rememberedHolders(), ['holder']);
  const forgotten = authority.forgetHolder('holder');
  assert.deepEqual(keeper.batch, [
    { revision: authority.snapshot.revision, nextIno: keeper.nextIno, put: [], remove: [], forgotten: 'holder' },
  ]);
  keeper.succeed();
  await forgotten;
  assert.deepEqual(authority.rememberedHolders(), []);
  commit({ op: 'drop', caller: app, ino: 1 }, tell('drop'));
  assert.deepEqual(answered(), ['drop 0']);
});

test('an unlinked file lives for who subscribed while the unlink was being kept, and goes with the last holder', async () => {
  const { keeper, authority, turn, create, unlink, answered, commit, tell } = await begin();
  create('f');
  keeper.succeed();
  await turn();
  const { ino } = authority.snapshot.resolve('/guest/f')!;
  unlink('f');
  const leave = authority.subscribe('late', () => {});
  keeper.succeed();
  await turn();
  assert.equal(authority.snapshot.node(ino)?.parentIno, 0);
  create('g');
  commit({ op: 'drop', caller: app, ino }, tell('drop'), 'late');
  assert.equal(authority.snapshot.node(ino)?.parentIno, 0, 'in its place in the order');
  keeper.fail();
  await turn();
  assert.equal(authority.snapshot.node(ino), undefined, 'a drop does not depend on what could not be kept');
  assert.deepEqual(answered(), ['f 0', 'f 0', `g ${EIO}`, `drop ${EIO}`]);
  leave();
  create('h');
  keeper.succeed();
  await turn();
  unlink('h');
  const { ino: last } = authority.snapshot.resolve('/guest/h')!;
  keeper.succeed();
  await turn();
  assert.equal(authority.snapshot.node(last), undefined, 'nobody is there to have it open');
  assert.equal(authority.replica.usage.nodes, 0);
});
