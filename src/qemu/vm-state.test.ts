import assert from 'node:assert/strict';
import { test } from 'node:test';
import * as fc from 'fast-check';
import { backOff, isDown, newVm, step, type VmAction, type VmEvent, type VmPolicy, type VmState } from './vm-state.ts';

const never: VmPolicy = { restart: 'no', guestReboot: 'boot' };
const onFailure: VmPolicy = { restart: 'on-failure', guestReboot: 'boot' };
const always: VmPolicy = { restart: 'always', guestReboot: 'boot' };

/** Takes `[seconds, event]` in order; gives the last state and all actions. */
function play(policy: VmPolicy, ...events: [number, VmEvent][]): { state: VmState; actions: VmAction[] } {
  let state = newVm(0);
  const actions: VmAction[] = [];
  for (const [seconds, event] of events) {
    const next = step(state, event, policy, seconds * 1000);
    state = next.state;
    actions.push(...next.actions);
  }
  return { state, actions };
}

const started: [number, VmEvent][] = [
  [0, { type: 'start' }],
  [0, { type: 'booting', bootId: 'b1' }],
  [1, { type: 'running' }],
];
const stop: VmEvent = { type: 'stop', deadlineMs: 10_000 };
const crash: VmEvent = { type: 'ended', words: 'QEMU ended with status 1: bad' };
const tick: VmEvent = { type: 'tick' };

test('step creates, starts and runs', () => {
  const created = play(never, [0, { type: 'create' }], [1, { type: 'created' }]);
  assert.deepEqual([created.state.status, created.actions], ['stopped', ['create']]);
  const failed = play(never, [0, { type: 'create' }], [1, { type: 'create-failed', reason: 'no room' }]);
  assert.deepEqual([failed.state.status, failed.state.reason], ['failed', 'no room']);
  const { state, actions } = play(never, ...started);
  assert.deepEqual(state, { status: 'running', reason: '', sinceMs: 1000, bootId: 'b1', failures: 0 });
  assert.deepEqual(actions, ['boot']);
});

test('step boots after it created when that was asked for last, and not after a creation that failed', () => {
  const create: [number, VmEvent][] = [[0, { type: 'create' }]];
  const created: [number, VmEvent] = [1, { type: 'created' }];
  assert.deepEqual(play(never, ...create, [0, { type: 'start' }], created).actions, ['create', 'boot']);
  assert.deepEqual(play(never, ...create, [0, { type: 'start' }], [0, stop], created).actions, ['create']);
  const reboot: VmEvent = { type: 'reboot', deadlineMs: 0 };
  assert.deepEqual(play(never, ...create, [0, reboot], created).actions, ['create', 'boot']);
  const failed = play(never, ...create, [0, { type: 'start' }], [1, { type: 'create-failed', reason: 'no room' }]);
  assert.deepEqual([failed.state.status, failed.state.startsNext], ['failed', undefined]);
});

test('step presses the power button again and again, then quits, then kills', () => {
  const until = (...events: [number, VmEvent][]) => play(never, ...started, [10, stop], ...events);
  assert.equal(until().state.wakeAtMs, 13_000);
  assert.deepEqual(until([13, tick], [16, tick]).actions, ['boot', 'powerdown', 'powerdown', 'powerdown']);
  assert.equal(until([13, tick], [16, tick], [19, tick]).state.wakeAtMs, 20_000);
  const quit = until([13, tick], [16, tick], [19, tick], [20, tick]);
  assert.deepEqual([quit.actions.at(-1), quit.state.wakeAtMs], ['quit', 25_000]);
  const killed = until([20, tick], [25, tick], [26, { type: 'ended', words: '' }]);
  assert.deepEqual(killed.actions.slice(-2), ['quit', 'kill']);
  assert.equal(killed.state.reason, 'the guest did not power off within 10 s and was killed');
  const asked = until([12, { type: 'shutdown', reason: 'guest-shutdown' }], [12, { type: 'ended', words: '' }]);
  assert.deepEqual([asked.state.status, asked.state.reason], ['stopped', 'the guest powered off when asked to']);
});

test('step makes a stop more urgent when it is asked for again, never less', () => {
  const urgent = play(never, ...started, [10, stop], [11, { type: 'stop', deadlineMs: 0 }], [11, tick]);
  assert.equal(urgent.actions.at(-1), 'quit');
  const patient = play(never, ...started, [10, stop], [11, { type: 'stop', deadlineMs: 60_000 }]);
  assert.equal(patient.state.stop?.quitAtMs, 20_000);
});

test('step boots again after a reboot from outside and from inside', () => {
  const ended: VmEvent = { type: 'ended', words: 'QEMU ended with status 0' };
  const outside = play(never, ...started, [5, { type: 'reboot', deadlineMs: 9 }], [6, ended]);
  assert.deepEqual([outside.state.status, outside.actions], ['starting', ['boot', 'powerdown', 'boot']]);
  const reset: [number, VmEvent][] = [
    [5, { type: 'shutdown', reason: 'guest-reset' }],
    [5, ended],
  ];
  const inside = play(never, ...started, ...reset);
  assert.deepEqual([inside.state.status, inside.state.reason], ['starting', 'the guest rebooted']);
  assert.equal(inside.state.shutdown, undefined);
  const unwanted = play({ restart: 'always', guestReboot: 'stop' }, ...started, ...reset);
  assert.deepEqual([unwanted.state.status, unwanted.state.reason], ['stopped', 'the guest rebooted']);
});

test('step says why QEMU ended, and starts again as the policy says', () => {
  const after = (policy: VmPolicy, reason: string | undefined) => {
    const shutdown: [number, VmEvent][] = reason === undefined ? [] : [[5, { type: 'shutdown', reason }]];
    const { state } = play(policy, ...started, ...shutdown, [5, crash]);
    return [state.status, state.reason, state.wakeAtMs];
  };
  assert.deepEqual(after(never, 'guest-shutdown'), ['stopped', 'the guest powered off', undefined]);
  assert.deepEqual(after(onFailure, 'guest-shutdown'), ['stopped', 'the guest powered off', undefined]);
  assert.deepEqual(after(always, 'guest-shutdown'), [
    'stopped',
    'the guest powered off; it starts again in 1 s',
    6_000,
  ]);
  assert.deepEqual(after(never, undefined), ['failed', 'QEMU ended with status 1: bad', undefined]);
  assert.deepEqual(after(never, 'guest-panic'), ['failed', "the guest's kernel panicked", undefined]);
  assert.deepEqual(after(onFailure, 'guest-panic'), [
    'failed',
    "the guest's kernel panicked; it starts again in 1 s",
    6_000,
  ]);
  assert.deepEqual(after(always, 'host-qmp-quit'), ['stopped', 'QEMU was told to quit over its monitor', undefined]);
});

test('step waits longer after each failure, and forgets them after a minute that went well', () => {
  let { state } = play(always, [0, { type: 'start' }]);
  const waits: number[] = [];
  let now = 0;
  for (let count = 0; count < 9; count++) {
    ({ state } = step(state, { type: 'boot-failed', reason: 'no' }, always, now));
    waits.push(state.wakeAtMs! - now);
    now = state.wakeAtMs!;
    const next = step(state, tick, always, now);
    assert.deepEqual(next.actions, ['boot']);
    ({ state } = next);
  }
  assert.deepEqual(
    waits,
    [1, 2, 4, 8, 16, 32, 60, 60, 60].map((seconds) => seconds * 1000),
  );
  ({ state } = step(state, { type: 'running' }, always, now));
  assert.equal(step(state, crash, always, now + 59_000).state.failures, 10);
  assert.equal(step(state, crash, always, now + 60_000).state.failures, 1);
  assert.equal(backOff(1_000), 60_000);
});

test('step calls off a start, and a restart that waits', () => {
  const early = play(never, [0, { type: 'start' }], [1, stop]);
  assert.deepEqual([early.state.status, early.actions], ['stopping', ['boot', 'abort-boot']]);
  assert.equal(
    play(never, [0, { type: 'start' }], [1, stop], [2, { type: 'boot-failed', reason: 'x' }]).state.status,
    'stopped',
  );
  const late = play(never, [0, { type: 'start' }], [1, stop], [2, { type: 'running' }]);
  assert.deepEqual(late.actions, ['boot', 'abort-boot', 'powerdown']);
  const waiting = play(always, ...started, [5, crash], [5, stop]);
  assert.deepEqual([waiting.state.status, waiting.state.wakeAtMs], ['stopped', undefined]);
  assert.deepEqual(step(waiting.state, tick, always, 99_000).actions, []);
});

test('step starts again at once what ran when the machine was restarted, unless the policy is never to', () => {
  const restarted: VmEvent = { type: 'machine-restarted' };
  const after = (policy: VmPolicy, ...events: [number, VmEvent][]) => {
    const { state, actions } = play(policy, ...events, [9, restarted]);
    return [state.status, state.reason, actions.at(-1)];
  };
  const again = ['starting', 'this machine was restarted', 'boot'];
  assert.deepEqual(after(onFailure, ...started), again);
  assert.deepEqual(after(always, ...started), again);
  assert.deepEqual(after(never, ...started), ['failed', 'this machine was restarted while it ran', 'boot']);
  assert.deepEqual(after(never, [0, { type: 'start' }]), again, 'it was asked for, and has not run');
  const words = 'this machine was restarted while it was being stopped';
  assert.deepEqual(after(always, ...started, [5, stop]), ['stopped', words, 'powerdown']);
  const reboot: VmEvent = { type: 'reboot', deadlineMs: 10_000 };
  assert.deepEqual(after(never, ...started, [5, reboot]), ['starting', 'it was rebooted', 'boot']);
});

test('step begins again what ended with the lease of its host, whatever the policy', () => {
  const ended: VmEvent = { type: 'lease-ended' };
  for (const policy of [never, always]) {
    const { state, actions } = play(policy, ...started, [9, ended]);
    assert.deepEqual([state.status, state.wakeAtMs, actions.at(-1)], ['starting', undefined, 'boot']);
    assert.equal(play(policy, [0, { type: 'start' }], [1, ended]).state.status, 'starting');
    assert.equal(play(policy, ...started, [5, stop], [9, ended]).state.status, 'stopped');
  }
});

test('step kills what is compromised, and starts it again for nobody but who asks afterwards', () => {
  const compromised: VmEvent = { type: 'compromised', reason: 'its token was taken' };
  const start: VmEvent = { type: 'start' };
  const reboot: VmEvent = { type: 'reboot', deadlineMs: 10_000 };
  const ended = (...events: [number, VmEvent][]) => play(always, ...started, ...events, [9, crash]);
  for (const event of [undefined, start, reboot, stop]) {
    const { state, actions } = ended(
      [7, compromised],
      ...(event === undefined ? [] : [[8, event] as [number, VmEvent]]),
    );
    assert.deepEqual([state.status, state.reason, state.wakeAtMs], ['compromised', 'its token was taken', undefined]);
    assert.deepEqual(actions, ['boot', 'kill']);
  }
  assert.equal(ended([6, reboot], [7, compromised]).state.status, 'compromised', 'nor what asked before');
  const guestOff: VmEvent = { type: 'shutdown', reason: 'guest-shutdown' };
  assert.equal(ended([7, compromised], [8, guestOff]).state.status, 'compromised');
  const begun = play(always, [0, start], [1, compromised], [2, { type: 'boot-failed', reason: 'aborted' }]);
  assert.deepEqual([begun.state.status, begun.actions], ['compromised', ['boot', 'abort-boot']]);
  const restarted = play(always, ...started, [7, compromised], [8, { type: 'machine-restarted' }]);
  assert.equal(restarted.state.status, 'compromised');
  assert.equal(step(restarted.state, stop, always, 9_000).state.status, 'compromised');
  for (const again of [start, reboot]) assert.deepEqual(step(restarted.state, again, always, 9_000).actions, ['boot']);
  assert.equal(play(always, [0, compromised]).state.status, 'stopped', 'where nothing runs there is nothing to end');
});

test('step never has two QEMUs at once, nor forgets one, whatever happens', () => {
  const event: fc.Arbitrary<VmEvent> = fc.oneof(
    fc.constantFrom<VmEvent>({ type: 'start' }, tick, { type: 'paused', reason: 'full' }, { type: 'resumed' }),
    fc.record({ type: fc.constantFrom('stop' as const, 'reboot' as const), deadlineMs: fc.nat(10_000) }),
    fc.record({
      type: fc.constant('shutdown' as const),
      reason: fc.constantFrom('guest-shutdown', 'guest-reset', 'guest-panic', 'host-signal'),
    }),
    fc.constantFrom<VmEvent>({ type: 'running' }, { type: 'boot-failed', reason: 'x' }, { type: 'ended', words: 'x' }),
    fc.constantFrom<VmEvent>(
      { type: 'machine-restarted' },
      { type: 'lease-ended' },
      { type: 'compromised', reason: 'x' },
    ),
  );
  const policy = fc.record({
    restart: fc.constantFrom('no' as const, 'on-failure' as const, 'always' as const),
    guestReboot: fc.constantFrom('boot' as const, 'stop' as const),
  });
  fc.assert(
    fc.property(policy, fc.array(fc.tuple(event, fc.nat(8_000)), { maxLength: 60 }), (policy, events) => {
      let state = newVm(0);
      let now = 0;
      // What the driver would have: nothing, a boot that is on its way, a QEMU that runs.
      let real = 'none' as 'none' | 'booting' | 'running';
      for (const [event, pause] of events) {
        now += pause;
        if (event.type === 'running' && real !== 'booting') continue;
        if (event.type === 'boot-failed' && real !== 'booting') continue;
        if ((event.type === 'ended' || event.type === 'shutdown') && real !== 'running') continue;
        // A daemon finds it out when it has found no QEMU, and a boot that was on its way is none any more.
        if (event.type === 'machine-restarted' || event.type === 'lease-ended') real = 'none';
        if (event.type === 'running') real = 'running';
        if (event.type === 'boot-failed' || event.type === 'ended') real = 'none';
        const next = step(state, event, policy, now);
        ({ state } = next);
        for (const action of next.actions) {
          if (action === 'boot') {
            assert.equal(real, 'none', 'boots only where nothing runs');
            real = 'booting';
          }
          if (action === 'powerdown' || action === 'quit' || action === 'kill') assert.equal(state.status, 'stopping');
        }
        if (state.status === 'running') assert.equal(real, 'running');
        if (state.status === 'starting') assert.equal(real, 'booting');
        if (isDown(state)) assert.equal(real, 'none');
        if (state.status === 'stopping') assert.notEqual(real, 'none');
        if (state.status === 'stopping' && real === 'running' && state.stop?.step !== 'kill')
          assert.notEqual(state.wakeAtMs, undefined, 'a stop is never left alone');
      }
    }),
    { numRuns: 2_000 },
  );
});
