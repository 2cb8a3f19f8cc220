import assert from 'node:assert/strict';
import { createHash, randomBytes } from 'node:crypto';
import { test } from 'node:test';
import fc from 'fast-check';
import { TokenDesk, type TokenEvent, type TokenRecord, type TokenState, type TokenStore } from './token.ts';

/** A store that a test can break, before it has kept something or after. */
class Disk implements TokenStore {
  kept: TokenRecord | undefined;
  breaks: 'before' | 'after' | undefined;
  load(): Promise<TokenRecord | undefined> {
    return Promise.resolve(this.kept);
  }
  async save(record: TokenRecord): Promise<void> {
    await Promise.resolve();
    const { breaks } = this;
    this.breaks = undefined;
    if (breaks === 'before') throw new Error('the disk is full');
    this.kept = structuredClone(record);
    if (breaks === 'after') throw new Error('the disk is gone');
  }
}

class Desk {
  readonly disk = new Disk();
  events: TokenEvent[] = [];
  nowMs = 0;
  /** Whether events are. */
  takes = true;
  state: TokenState | undefined;
  desk = this.#make();

  #make(): TokenDesk {
    return new TokenDesk({
      store: this.disk,
      onEvent: (event) => this.takes && this.events.push(event) > 0,
      randomBytes,
      monotonicMs: () => this.nowMs,
      wallMs: () => this.nowMs,
      onChange: (state) => (this.state = state),
    });
  }

  async restart(boot: string): Promise<void> {
    this.desk = this.#make();
    await this.desk.boot(boot);
  }
}

const nonce = (who: string): string => who.repeat(22).slice(0, 22);

test('TokenDesk gives the token out once, and again to the same nonce until it is used', async () => {
  const stage = new Desk();
  const { desk } = stage;
  await desk.boot('b');
  const first = await desk.claim(nonce('a'), 'vsock', true);
  assert.ok('token' in first);
  assert.match(first.token, /^[\w-]{43}$/);
  assert.deepEqual(await desk.claim(nonce('a'), 'vsock', true), first, 'its answer may have been lost');
  assert.equal(stage.events.length, 0);
  assert.equal(await desk.verify(first.token), true);
  assert.deepEqual(await desk.claim(nonce('a'), 'vsock', true), { refused: 'taken' });
  assert.deepEqual(
    stage.events.map(({ event }) => event),
    ['token-refused'],
    'after its first use nobody can forge an incident',
  );
});

test('TokenDesk tells of a compromised machine when another asks before the first use, and nobody has a token then', async () => {
  const stage = new Desk();
  await stage.desk.boot('b');
  const first = await stage.desk.claim(nonce('a'), 'vsock', true);
  assert.ok('token' in first);
  assert.deepEqual(await stage.desk.claim(nonce('b'), 'tcp', true), { refused: 'taken' });
  assert.deepEqual(stage.events, [{ event: 'compromised', boot: 'b', channel: 'tcp', atMs: 0 }]);
  await stage.restart('b');
  assert.equal(stage.state?.compromised, true, 'who comes after a kill is told');
  assert.equal(await stage.desk.verify(first.token), false);
  assert.deepEqual(await stage.desk.claim(nonce('a'), 'vsock', true), { refused: 'taken' });
  await stage.desk.boot('c');
  assert.ok('token' in (await stage.desk.claim(nonce('a'), 'vsock', true)), 'the next boot begins anew');
});

test('TokenDesk tells an incident until it is taken, once, whatever dies or boots meanwhile', async () => {
  const stage = new Desk();
  stage.takes = false;
  await stage.desk.boot('b');
  await stage.desk.claim(nonce('a'), 'vsock', true);
  await stage.desk.claim(nonce('b'), 'tcp', true);
  stage.nowMs = 1000;
  await stage.restart('b');
  assert.deepEqual(stage.desk.untold, { boot: 'b', channel: 'tcp', atMs: 0 });
  await stage.restart('c');
  await stage.desk.boot('d');
  assert.deepEqual(stage.events, []);
  assert.ok('token' in (await stage.desk.claim(nonce('a'), 'vsock', true)), 'it is not of this boot');
  stage.takes = true;
  for (let i = 0; i < 2; i++) await stage.desk.tellIncident();
  await stage.restart('d');
  assert.deepEqual(stage.events, [{ event: 'compromised', boot: 'b', channel: 'tcp', atMs: 0 }]);
});

test('TokenDesk refuses a claim, and raises no alarm, when no boot was told', async () => {
  const { desk, events } = new Desk();
  assert.deepEqual(await desk.claim(nonce('a'), 'vsock', true), { refused: 'no-boot' });
  assert.deepEqual(events, []);
});

test('TokenDesk gives the token of the boot that was told last, however fast one follows the other', async () => {
  const stage = new Desk();
  await Promise.all(['b', 'c', 'd'].map((boot) => stage.desk.boot(boot)));
  assert.equal(stage.desk.currentBoot, 'd');
  const begun = stage.desk.boot('e');
  await Promise.resolve();
  await Promise.all([begun, stage.desk.boot('f')]);
  assert.deepEqual([stage.desk.currentBoot, stage.disk.kept?.boot], ['f', 'f']);
  assert.ok('token' in (await stage.desk.claim(nonce('a'), 'vsock', true)));
});

test('TokenDesk tells how far the token of a boot is, and gives what checks it', async () => {
  const stage = new Desk();
  stage.nowMs = 5;
  await stage.desk.boot('b');
  assert.deepEqual([stage.state?.state, stage.desk.verifier], ['unclaimed', { boot: 'b', tokenHash: undefined }]);
  const first = await stage.desk.claim(nonce('a'), 'vsock', true);
  assert.ok('token' in first);
  const tokenHash = createHash('sha256').update(first.token).digest('base64');
  assert.deepEqual([stage.state?.claimedAtMs, stage.desk.verifier], [5, { boot: 'b', tokenHash }]);
  stage.nowMs = 7;
  await stage.desk.verify(first.token);
  assert.deepEqual([stage.state?.state, stage.state?.usedAtMs], ['used', 7]);
  await stage.desk.handBack(first.token);
  assert.deepEqual([stage.state?.state, stage.desk.verifier?.tokenHash], ['returned', undefined]);
});

test('TokenDesk neither gives out nor tells anything where the channel is not privileged', async () => {
  const { desk, events } = new Desk();
  await desk.boot('b');
  assert.deepEqual(await desk.claim(nonce('a'), 'tcp', false), { refused: 'not-privileged' });
  const first = await desk.claim(nonce('b'), 'tcp', true);
  assert.ok('token' in first);
  assert.deepEqual(await desk.claim(nonce('a'), 'tcp', false), { refused: 'not-privileged' });
  assert.deepEqual(events, []);
});

test('TokenDesk keeps nothing from which the token follows', async () => {
  const stage = new Desk();
  await stage.desk.boot('b');
  const claimed = await stage.desk.claim(nonce('a'), 'vsock', true);
  assert.ok('token' in claimed);
  const kept = JSON.stringify(stage.disk.kept);
  assert.ok(!kept.includes(claimed.token) && !kept.includes(nonce('a')));
  const { tokenHash } = stage.disk.kept!;
  assert.equal(tokenHash, createHash('sha256').update(claimed.token).digest('base64'));
});

test('TokenDesk answers two claims at the same time with one token and one refusal', async () => {
  const { desk, events } = new Desk();
  await desk.boot('b');
  const claims = await Promise.all([desk.claim(nonce('a'), 'vsock', true), desk.claim(nonce('b'), 'vsock', true)]);
  assert.deepEqual(
    claims.map((claim) => 'token' in claim),
    [true, false],
  );
  assert.equal(events.length, 1);
});

test('TokenDesk limits what it tells of refusals after the first use, and says how many it left out', async () => {
  const stage = new Desk();
  const { desk, events } = stage;
  await desk.boot('b');
  const claimed = await desk.claim(nonce('a'), 'vsock', true);
  assert.ok('token' in claimed);
  await desk.verify(claimed.token);
  for (let i = 0; i < 100; i++) await desk.claim(nonce('x'), 'vsock', true);
  assert.equal(events.length, 5);
  stage.nowMs += 10_000;
  await desk.claim(nonce('x'), 'vsock', true);
  assert.deepEqual(events.at(-1), { event: 'token-refused', boot: 'b', channel: 'vsock', dropped: 95 });
});

test('TokenDesk ends every token with the boot, at once', async () => {
  const { desk } = new Desk();
  await desk.boot('b');
  const claimed = await desk.claim(nonce('a'), 'vsock', true);
  assert.ok('token' in claimed);
  assert.equal(await desk.verify(claimed.token), true);
  const before = desk.derive('x')!;
  const next = desk.boot('c');
  assert.equal(await desk.verify(claimed.token), false, 'while the new boot is being kept');
  await next;
  assert.equal(await desk.verify(claimed.token), false);
  assert.notDeepEqual(desk.derive('x'), before);
  assert.ok('token' in (await desk.claim(nonce('a'), 'vsock', true)), 'the new boot has one of its own');
});

type Step =
  | { readonly do: 'claim' | 'use' | 'return'; readonly who: string; readonly breaks?: 'before' | 'after' | undefined }
  | { readonly do: 'restart' }
  | { readonly do: 'boot' }
  | { readonly do: 'guess'; readonly token: string };

const who = fc.constantFrom('a', 'b', 'c');
const breaks = fc.option(fc.constantFrom('before' as const, 'after' as const), { nil: undefined, freq: 4 });
const step: fc.Arbitrary<Step> = fc.oneof(
  { weight: 6, arbitrary: fc.record({ do: fc.constant('claim' as const), who, breaks }) },
  { weight: 4, arbitrary: fc.record({ do: fc.constant('use' as const), who, breaks }) },
  { weight: 2, arbitrary: fc.record({ do: fc.constant('return' as const), who, breaks }) },
  { weight: 2, arbitrary: fc.constantFrom<Step>({ do: 'restart' }, { do: 'boot' }) },
  {
    weight: 1,
    arbitrary: fc.record({ do: fc.constant('guess' as const), token: fc.string({ maxLength: 60, unit: 'binary' }) }),
  },
);

test('TokenDesk keeps to the rules over claims, uses, lost answers, broken disks, restarts and boots', async () => {
  const seen = { tokens: 0, refusals: 0, compromised: 0 };
  await fc.assert(
    fc.asyncProperty(fc.array<Step>(step, { minLength: 1, maxLength: 40, size: 'max' }), async (steps) => {
      const stage = new Desk();
      let boot = 0;
      await stage.desk.boot('boot-0');
      /** Tokens that were answered in this boot, by who has them; the live one; whether it was used. */
      const has = new Map<string, string>();
      const dead = new Set<string>();
      let issues = 0;
      let returns = 0;
      let maybeReturns = 0;
      /** What a broken disk left open may have been kept. */
      let isUnsure = false;
      let live: string | undefined;
      let used = false;
      let compromised = false;
      for (const one of steps) {
        if (one.do === 'restart') {
          await stage.restart(`boot-${boot}`);
          continue;
        }
        if (one.do === 'boot') {
          await stage.desk.boot(`boot-${++boot}`);
          for (const token of has.values()) dead.add(token);
          has.clear();
          issues = returns = maybeReturns = 0;
          live = undefined;
          used = isUnsure = compromised = false;
        } else if (one.do === 'guess') {
          if (![...has.values()].includes(one.token)) assert.equal(await stage.desk.verify(one.token), false);
        } else if (one.do === 'claim') {
          stage.disk.breaks = one.breaks;
          const events = stage.events.length;
          const claim = await stage.desk.claim(nonce(one.who), 'vsock', true).catch(() => undefined);
          if (claim === undefined) {
            isUnsure = true;
            // Where a return may have been kept, so may a new token be, which nobody has used.
            if (maybeReturns > 0) used = false;
          } else if ('token' in claim) {
            seen.tokens++;
            assert.ok(!compromised, 'once it is compromised, nobody is given one');
            assert.ok(!dead.has(claim.token), 'a token of before comes never again');
            if (claim.token !== live) {
              issues++;
              assert.ok(
                issues <= 1 + returns + maybeReturns,
                'one for the boot, and one for each that was handed back',
              );
              live = claim.token;
              used = false;
            } else assert.ok(!used, 'after its first use nobody is told it again');
            has.set(one.who, claim.token);
          } else {
            seen.refusals++;
            assert.equal(claim.refused, 'taken');
            const told = stage.events.slice(events).map(({ event }) => event);
            if (told.includes('compromised')) seen.compromised++;
            if (compromised) assert.ok(!told.includes('compromised'), 'an incident is told once');
            else if (used) assert.ok(!told.includes('compromised'), 'after its first use nobody can forge an incident');
            else if (!isUnsure) assert.deepEqual(told, ['compromised'], 'before it, it is never silent');
            if (told.includes('compromised')) {
              compromised = true;
              for (const token of has.values()) dead.add(token);
            }
          }
          stage.disk.breaks = undefined;
        } else {
          const token = has.get(one.who);
          if (token === undefined) continue;
          stage.disk.breaks = one.breaks;
          if (one.do === 'use') {
            const ok = await stage.desk.verify(token).catch(() => undefined);
            if (ok === undefined) isUnsure = true;
            else if (token === live && !dead.has(token) && !isUnsure) assert.equal(ok, true);
            else if (token !== live || dead.has(token)) assert.equal(ok, false, 'only the last one counts');
            if (ok === true) used = true;
          } else {
            const ok = await stage.desk.handBack(token).catch(() => undefined);
            if (ok === undefined) {
              isUnsure = true;
              used = false;
              maybeReturns++;
            } else if (ok && token === live && !dead.has(token)) {
              returns++;
              used = false;
              dead.add(token);
            }
          }
          stage.disk.breaks = undefined;
        }
        for (const token of dead) assert.equal(await stage.desk.verify(token), false, 'what is dead stays dead');
      }
    }),
    { numRuns: 500 },
  );
  assert.ok(seen.tokens > 500 && seen.refusals > 100 && seen.compromised > 50, JSON.stringify(seen));
});

test('TokenDesk gives what a token is checked by, until its end, and takes word that it was used', async () => {
  const stage = new Desk();
  const hashOf = (token: string): string => createHash('sha256').update(token).digest('base64');
  await stage.desk.boot('b');
  const hash = (): string | undefined => stage.desk.verifier!.tokenHash;
  assert.equal(hash(), undefined);
  const claimed = await stage.desk.claim(nonce('a'), 'vsock', true);
  assert.ok('token' in claimed);
  assert.equal(hash(), hashOf(claimed.token));
  await stage.desk.used(hashOf('another'));
  assert.equal(stage.desk.wasUsed, false);
  await stage.desk.used(hash()!);
  assert.equal(stage.desk.wasUsed, true);
  assert.deepEqual(await stage.desk.claim(nonce('a'), 'vsock', true), { refused: 'taken' });
  assert.deepEqual(
    stage.events.map(({ event }) => event),
    ['token-refused'],
  );
  await stage.restart('b');
  assert.equal(hash(), hashOf(claimed.token));
  assert.equal(await stage.desk.handBack(claimed.token), true);
  assert.equal(hash(), undefined);
  await stage.desk.used(hashOf(claimed.token));
  const next = await stage.desk.claim(nonce('c'), 'vsock', true);
  assert.ok('token' in next, 'what was handed back is used no more');
  const booted = stage.desk.boot('b2');
  assert.equal(stage.desk.verifier, undefined, 'at once');
  await booted;
  assert.deepEqual(stage.desk.verifier, { boot: 'b2', tokenHash: undefined });
});
