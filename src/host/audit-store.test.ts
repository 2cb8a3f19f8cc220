import assert from 'node:assert/strict';
import {
  appendFileSync,
  mkdtempSync,
  readdirSync,
  readFileSync,
  renameSync,
  rmSync,
  statSync,
  writeFileSync,
} from 'node:fs';
import { tmpdir } from 'node:os';
import path from 'node:path';
import { type TestContext, test } from 'node:test';
import fc from 'fast-check';
import { AuditRing } from '../device/audit-ring.ts';
import type { AuditRecord } from '../tree/index.ts';
import { asLine, chainOf, firstLink, type Link } from './audit-chain.ts';
import { AuditRingReader } from './audit-ring-reader.ts';
import { type KeptRecord, parseLine, sliceBytes } from './audit-scan.ts';
import { AuditCompactedError, AuditStore, type AuditStoreOptions } from './audit-store.ts';

const startMs = Date.UTC(2026, 0, 1);

const recordOf = (n: number, over: Partial<AuditRecord> = {}): AuditRecord => ({
  timeMs: startMs + n * 1000,
  vm: n % 2 === 0 ? 'even' : 'odd',
  way: 'virtiofs',
  operation: 'open',
  path: `/secrets/k${n % 3}`,
  uid: n % 5,
  gid: 0,
  pid: 1,
  revision: n,
  verdict: n % 4 === 0 ? 'denied' : 'allowed',
  ...(n % 4 === 0 && { errno: 'EACCES' }),
  rule: 'default',
  ...over,
});

function storeIn(t: TestContext) {
  const directory = mkdtempSync(path.join(tmpdir(), 'porthole-audit-'));
  t.after(() => rmSync(directory, { recursive: true, force: true }));
  const health: string[] = [];
  let nowMs = startMs;
  const open = (options: Partial<AuditStoreOptions> = {}): AuditStore =>
    new AuditStore({
      directory,
      keepDays: 30,
      mostBytes: 2 ** 30,
      wallMs: () => nowMs,
      onHealth: (writable, reason) => health.push(`${writable} ${reason}`),
      ...options,
    });
  return { directory, open, health, advanceDays: (days: number) => (nowMs += days * 86_400_000) };
}

async function all(records: AsyncIterable<KeptRecord>): Promise<number[]> {
  const sequences: number[] = [];
  for await (const { sequence } of records) sequences.push(sequence);
  return sequences;
}

/** What a whole check finds, a segment at a time. */
async function problemsOf(store: AuditStore, after?: Link): Promise<string[]> {
  const found: string[] = [];
  for (let from = after; ; ) {
    const { problems, last, isEnd } = await store.check(from, { mostBytes: 1 });
    found.push(...problems.map(({ file, line, what }) => `${file.replace(/^0*(\d+).jsonl$/, '$1')}:${line} ${what}`));
    if (isEnd) return found;
    from = last;
  }
}

test('AuditStore gives back what matches, in order and in reverse, over segments and restarts', async (t) => {
  const { open } = storeIn(t);
  const records = Array.from({ length: 60 }, (_, n) => recordOf(n));
  for (let n = 0; n < 60; n += 7) {
    using store = open({ segmentBytes: 2000 });
    assert.equal(store.append(records.slice(n, n + 7)), true);
  }
  using store = open();
  assert.equal(store.sequence, 60);
  const expected = (matches: (record: AuditRecord) => boolean): number[] =>
    records.flatMap((record, n) => (matches(record) ? [n + 1] : []));
  assert.deepEqual(
    await all(store.query({})),
    expected(() => true),
  );
  assert.deepEqual(
    await all(store.query({ vm: 'odd', uid: 3 })),
    expected(({ vm, uid }) => vm === 'odd' && uid === 3),
  );
  assert.deepEqual(
    await all(store.query({ path: '/secrets/k1' })),
    expected((record) => record.path === '/secrets/k1'),
  );
  assert.deepEqual(await all(store.query({ path: '/secrets/k' })), []);
  assert.deepEqual(
    await all(store.query({ path: '/secrets' })),
    expected(() => true),
  );
  const newest = await all(store.query({ verdict: 'denied' }, { newestFirst: true }));
  assert.deepEqual(newest, expected(({ verdict }) => verdict === 'denied').toReversed());
  assert.deepEqual(await all(store.query({}, { after: 57 })), [58, 59, 60]);
  assert.deepEqual(await all(store.query({}, { after: 3, newestFirst: true })), [2, 1]);
  const [fromMs, untilMs] = [startMs + 10_000, startMs + 13_000];
  assert.deepEqual(await all(store.query({ fromMs, untilMs })), [11, 12, 13]);
  assert.deepEqual(await problemsOf(store), []);
});

test('AuditStore.page gives all that matches over its pages, however short lines, pages and reads are', async (t) => {
  const { open } = storeIn(t);
  const records = Array.from({ length: 1500 }, (_, n) =>
    recordOf(n, { path: `/secrets/k${n % 3}${n % 97 === 0 ? '/x'.repeat(120_000) : ''}` }),
  );
  using store = open({ segmentBytes: 1_500_000 });
  for (let n = 0; n < records.length; n += 100) assert.equal(store.append(records.slice(n, n + 100)), true);
  const page = fc.record({
    limit: fc.integer({ min: 1, max: 700 }),
    mostBytes: fc.integer({ min: 1, max: 3_000_000 }),
    newestFirst: fc.boolean(),
    filter: fc.constantFrom({}, { uid: 3 }, { verdict: 'denied' as const }, { path: '/secrets/k1' }, { vm: 'none' }),
    after: fc.option(fc.integer({ min: 0, max: 1501 }), { nil: undefined }),
  });
  await fc.assert(
    fc.asyncProperty(page, async ({ limit, mostBytes, newestFirst, filter, after }) => {
      const wanted = await all(store.query(filter));
      if (newestFirst) wanted.reverse();
      const isWanted = (one: number) => after === undefined || (newestFirst ? one < after : one > after);
      const found: number[] = [];
      for (let from = after; ; ) {
        const { records: some, next } = await store.page(filter, { after: from, limit, mostBytes, newestFirst });
        found.push(...some.map(({ sequence }) => sequence));
        assert.ok(some.length <= limit);
        if (next === undefined) break;
        assert.ok(from === undefined || (newestFirst ? next.sequence < from : next.sequence > from));
        from = next.sequence;
      }
      assert.deepEqual(found, wanted.filter(isWanted));
    }),
    { numRuns: 40 },
  );
});

/** Also by hand: `PORTHOLE_AUDIT_MIB=200`. */
const largeMib = Number(process.env['PORTHOLE_AUDIT_MIB'] ?? 24);

test('AuditStore.page parses a slice of a large log and lets others have their turn, and stops at its bound', async (t) => {
  const { open, directory } = storeIn(t);
  using store = open();
  const batch = Array.from({ length: 2_000 }, (_, n) => recordOf(n));
  const bytes = (): number =>
    readdirSync(directory).reduce((sum, name) => sum + statSync(path.join(directory, name)).size, 0);
  while (bytes() < largeMib * 1024 * 1024) store.append(batch);
  const { parse } = JSON;
  let inThisTurn = 0;
  let most = 0;
  let sum = 0;
  let isOver = false;
  const turn = (): void => {
    most = Math.max(most, inThisTurn);
    sum += inThisTurn;
    inThisTurn = 0;
    if (!isOver) setImmediate(turn);
  };
  setImmediate(turn);
  t.mock.method(JSON, 'parse', (text: string) => {
    inThisTurn += text.length;
    return parse(text) as unknown;
  });
  // Nothing matches, and only a look into each record tells that.
  const filter = { untilMs: startMs };
  const mostBytes = 4 * 1024 * 1024;
  for (const newestFirst of [false, true]) {
    let pages = 0;
    for (let after: number | undefined; ; pages++) {
      const { records, next } = await store.page(filter, { after, limit: 10, mostBytes, newestFirst });
      assert.deepEqual(records, []);
      if (next === undefined) break;
      after = next.sequence;
    }
    assert.ok(pages >= largeMib / 4 - 1 && pages <= largeMib / 4 + 2, `${pages} pages of ${largeMib} MiB`);
  }
  isOver = true;
  turn();
  assert.ok(sum > 1.8 * largeMib * 1024 * 1024, `only ${sum} bytes were looked at`);
  assert.ok(most > 0 && most <= sliceBytes, `${most} bytes in one turn`);
  t.diagnostic(`${largeMib} MiB, at most ${most} bytes in one turn`);
});

test('AuditStore.check says what was changed, taken out, moved or cut off, and where', async (t) => {
  const { open, directory } = storeIn(t);
  const segmentBytes = 700;
  const names = (): string[] => readdirSync(directory).filter((name) => name.endsWith('.jsonl'));
  let noted: Link;
  {
    using store = open({ segmentBytes });
    for (let n = 0; n < 9; n++) store.append([recordOf(n)], n < 5 ? {} : { account: 'team', bootId: 'b' });
    noted = (await store.check(undefined, { mostBytes: 1 })).last;
  }
  const whole = new Map(readdirSync(directory).map((name) => [name, readFileSync(path.join(directory, name), 'utf8')]));
  const [first, second, third] = names().map((name) => whole.get(name)!.trimEnd().split('\n')) as [
    string[],
    string[],
    string[],
  ];
  assert.ok(first.length > 2 && second.length > 2 && third.length > 1, 'three segments');
  const secondName = String(first.length + 1);
  const thirdName = String(first.length + second.length + 1);
  const foundIn = async (
    changed: Readonly<Record<number, readonly string[] | undefined>>,
    after?: Link,
    withEnds = true,
  ) => {
    for (const name of names()) rmSync(path.join(directory, name));
    for (const [i, [name, text]] of [...whole].filter(([name]) => name.endsWith('.jsonl')).entries()) {
      const lines = i in changed ? changed[i] : text.trimEnd().split('\n');
      if (lines !== undefined) writeFileSync(path.join(directory, name), `${lines.join('\n')}\n`);
    }
    if (withEnds) writeFileSync(path.join(directory, 'ends.json'), whole.get('ends.json')!);
    else rmSync(path.join(directory, 'ends.json'), { force: true });
    using store = open({ segmentBytes });
    return problemsOf(store, after);
  };
  assert.deepEqual(await foundIn({}), []);
  const changed = second.with(1, second[1]!.replace('"pid":1', '"pid":2'));
  assert.deepEqual(await foundIn({ 1: changed }), [
    `${secondName}:2 record ${first.length + 2}, or the one before, was changed`,
  ]);
  assert.deepEqual(await foundIn({ 0: first.with(0, first[0]!.replace('"uid":0', '"uid":7')) }), [
    '1:1 record 1, or the one before, was changed',
  ]);
  assert.deepEqual(await foundIn({ 2: third.with(0, third[0]!.replace('"team"', '"other"')) }), [
    `${thirdName}:1 record ${first.length + second.length + 1}, or the one before, was changed`,
  ]);
  assert.deepEqual(await foundIn({ 1: second.toSpliced(1, 1) }), [
    `${secondName}:2 record ${first.length + 2} is missing`,
  ]);
  assert.match((await foundIn({ 1: [second[1]!, second[0]!, ...second.slice(2)] })).join(), /comes after record/);
  assert.match((await foundIn({ 1: undefined })).join(), new RegExp(`^${thirdName}:1 records .* are missing$`));
  assert.deepEqual(await foundIn({ 0: undefined }), [`${secondName}:1 records 1 to ${first.length} are missing`]);
  assert.deepEqual(await foundIn({ 2: third.slice(0, -1) }), [`${thirdName}:0 record 9 is missing at the end`]);
  assert.match(
    (await foundIn({ 0: undefined, 1: undefined, 2: undefined })).join(),
    /records 1 to 9 are missing at the end/,
  );

  // Somebody who makes the whole chain anew is found out by what was noted of it.
  let before: Link = firstLink;
  const forged = [first.with(1, first[1]!.replace('"uid":1', '"uid":7')), second, third].map((lines) =>
    lines.map((text) => {
      const { json, ...line } = parseLine(text)!;
      before = { sequence: line.sequence, chain: chainOf(before.chain, line, json) };
      return asLine(line, before.chain, json).trimEnd();
    }),
  );
  assert.deepEqual(await foundIn({ ...forged }), [`${thirdName}:0 record 9 is another than was written`]);
  assert.deepEqual(await foundIn({ ...forged }, undefined, false), []);
  assert.match((await foundIn({ ...forged }, noted, false)).join(), /was changed|is another than it was/);
  assert.deepEqual(await foundIn({}, noted), []);
});

test('AuditStore.check goes on finding that records were cut off, after restarts, more records and the end of old ones', async (t) => {
  const { open, directory } = storeIn(t);
  {
    using store = open({ segmentBytes: 1000 });
    for (let n = 0; n < 9; n++) store.append([recordOf(n)]);
  }
  const last = path.join(directory, readdirSync(directory).findLast((name) => name.endsWith('.jsonl'))!);
  rmSync(last);
  for (const more of [9, 10]) {
    using store = open({ segmentBytes: 1000 });
    assert.match((await problemsOf(store)).join(), /^\S+ records? .* (is|are) missing( at the end)?$/);
    store.append([recordOf(more)]);
    assert.equal(store.sequence, more + 1);
    assert.deepEqual(
      await all(store.query({}, { after: 9 })),
      Array.from({ length: more - 8 }, (_, n) => n + 10),
    );
  }
  using store = open({ segmentBytes: 1000, mostBytes: 3000 });
  for (let n = 11; n < 30; n++) store.append([recordOf(n)]);
  assert.ok(store.oldestSequence > 10);
  assert.deepEqual(await problemsOf(store), [], 'what is too old is not missed');
});

test('AuditStore.lastUntil finds where a moment is, in segments of any length', async (t) => {
  const { open, advanceDays } = storeIn(t);
  using store = open({ segmentBytes: 100_000 });
  assert.equal(await store.lastUntil(startMs), 0);
  for (let day = 0; day < 6; day++) {
    store.append(Array.from({ length: 300 }, (_, n) => recordOf(n)));
    advanceDays(1);
  }
  for (let day = -1; day < 7; day++) {
    const atMs = startMs + day * 86_400_000;
    assert.equal(await store.lastUntil(atMs), Math.min(6, day + 1) * 300);
    assert.equal(await store.lastUntil(atMs + 1), Math.min(6, day + 1) * 300);
  }
});

test('AuditStore goes on after a line that a crash cut, wherever it was cut', (t) => {
  const { open, directory } = storeIn(t);
  {
    using store = open();
    store.append([recordOf(0), recordOf(1)]);
  }
  const file = path.join(directory, readdirSync(directory)[0]!);
  const whole = readFileSync(file, 'utf8');
  {
    using store = open();
    store.append([recordOf(2)]);
  }
  const line = readFileSync(file, 'utf8').slice(whole.length);
  fc.assert(
    fc.property(fc.integer({ min: 0, max: line.length - 1 }), (cut) => {
      writeFileSync(file, whole);
      appendFileSync(file, line.slice(0, cut));
      // Nothing of that line was on the disk for certain.
      rmSync(path.join(directory, 'ends.json'));
      using store = open();
      assert.equal(store.sequence, 2);
      assert.equal(store.append([recordOf(2)]), true);
      assert.equal(readFileSync(file, 'utf8'), whole + line);
    }),
    { numRuns: 50 },
  );
});

test('AuditStore.follow tells every record once and in order, from the disk and as they come', async (t) => {
  const { open } = storeIn(t);
  {
    using store = open({ segmentBytes: 1500 });
    for (let n = 0; n < 30; n++) store.append([recordOf(n)]);
  }
  using store = open({ segmentBytes: 1500 });
  const stop = new AbortController();
  const told: number[] = [];
  const following = (async () => {
    for await (const { sequence } of store.follow({ vm: 'even' }, 4, stop.signal)) {
      told.push(sequence);
      if (sequence < 60) store.append([recordOf(sequence + 100), recordOf(sequence + 101)]);
      if (sequence >= 55) return;
    }
  })();
  await following;
  assert.deepEqual(
    told,
    [...new Set(told)].toSorted((a, b) => a - b),
  );
  assert.equal(told[0], 5);
  const expected: number[] = [];
  for await (const { sequence } of store.query({ vm: 'even' }, { after: 4 }))
    if (sequence <= told.at(-1)!) expected.push(sequence);
  assert.deepEqual(told, expected);
  stop.abort();
});

test('AuditStore forgets what is too old or too much, and says so to who asks for it', async (t) => {
  const { open, advanceDays } = storeIn(t);
  using store = open({ segmentBytes: 1000 });
  for (let n = 0; n < 20; n++) store.append([recordOf(n)]);
  const before = store.oldestSequence;
  assert.equal(before, 1);
  advanceDays(31);
  for (let n = 20; n < 40; n++) store.append([recordOf(n)]);
  assert.ok(store.oldestSequence >= 18, `the oldest is ${store.oldestSequence}`);
  await assert.rejects(
    async () => {
      for await (const kept of store.follow({}, 3, new AbortController().signal)) assert.fail(`${kept.sequence}`);
    },
    (error) => error instanceof AuditCompactedError && error.oldestSequence === store.oldestSequence,
  );
  assert.deepEqual(await problemsOf(store), []);
});

class Killed extends Error {}

test('AuditStore takes each record of a ring once, wherever the daemon is killed', async (t) => {
  const { directory, open } = storeIn(t);
  const ringPath = path.join(directory, 'audit.ring');
  let made = 0;
  let kill: 'before' | 'after' | undefined;
  const readers: AuditRingReader[] = [];
  const start = (): { store: AuditStore; reader: AuditRingReader } => {
    const store = open();
    const log = store.ringLog(() => ({ bootId: 'boot-1' }));
    const reader = new AuditRingReader({
      path: ringPath,
      vm: 'even',
      log: {
        ...log,
        writable: true,
        write: (lines) => {
          if (kill === 'before') throw new Killed();
          const written = log.write(lines);
          if (kill === 'after') throw new Killed();
          return written;
        },
      },
      onLie: assert.fail,
      onTrouble: assert.fail,
    });
    readers.push(reader);
    return { store, reader };
  };
  let daemon = start();
  const ring = new AuditRing(ringPath);
  for (let round = 0; round < 40; round++) {
    for (let n = 0; n < round % 7; n++) assert.equal(ring.record(recordOf(2 * made, { pid: ++made })), true);
    kill = (['before', 'after', undefined] as const)[round % 3];
    try {
      daemon.reader.drain();
    } catch (error) {
      if (!(error instanceof Killed)) throw error;
    }
    kill = undefined;
    daemon.store[Symbol.dispose]();
    daemon = start();
    // What another VM's ring has between.
    daemon.store.append([recordOf(1, { vm: 'odd' })]);
  }
  daemon.reader.drain();
  const pids: number[] = [];
  for await (const { record, bootId } of daemon.store.query({ vm: 'even' })) {
    pids.push(record.pid);
    assert.equal(bootId, 'boot-1');
  }
  assert.deepEqual(
    pids,
    Array.from({ length: made }, (_, n) => n + 1),
  );
  assert.deepEqual(await problemsOf(daemon.store), []);
  ring.close();
  daemon.store[Symbol.dispose]();
  for (const reader of readers) reader[Symbol.dispose]();
});

test('AuditStore takes each record once when who hears that it can be written again writes at once', async (t) => {
  const { directory, open } = storeIn(t);
  const away = `${directory}-away`;
  const store: AuditStore = open({
    segmentBytes: 1,
    onHealth: (writable) => {
      if (!writable) return;
      reader.drain();
      store.append([recordOf(1)]);
    },
  });
  const ringPath = path.join(directory, 'audit.ring');
  const reader = new AuditRingReader({
    path: ringPath,
    vm: 'even',
    log: store.ringLog(() => ({ bootId: 'boot-1' })),
    onLie: assert.fail,
    onTrouble: assert.fail,
  });
  const ring = new AuditRing(ringPath);
  assert.equal(store.append([recordOf(3)]), true);
  for (const pid of [1, 2, 3]) assert.equal(ring.record(recordOf(0, { pid })), true);
  renameSync(directory, away);
  assert.equal(reader.drain(), false);
  renameSync(away, directory);
  assert.equal(reader.drain(), true);
  const found: string[] = [];
  for await (const { sequence, record } of store.query({})) found.push(`${sequence} ${record.vm} ${record.pid}`);
  assert.deepEqual(found, ['1 odd 1', '2 even 1', '3 even 2', '4 even 3', '5 odd 1']);
  assert.deepEqual(await problemsOf(store), []);
  ring.close();
  store[Symbol.dispose]();
  reader[Symbol.dispose]();
});
