/** The life of one VM as a pure function: state and event give the next state and what is to be done. */

export type VmStatus = 'creating' | 'starting' | 'running' | 'stopping' | 'stopped' | 'failed' | 'compromised';

export interface VmPolicy {
  /** What happens when the guest powers off (`always`), or when it or QEMU fails (`on-failure`, `always`). */
  readonly restart: 'no' | 'on-failure' | 'always';
  /** Whether a reboot from inside gives a new boot, or stops the VM. */
  readonly guestReboot: 'boot' | 'stop';
}

export interface VmState {
  readonly status: VmStatus;
  /** For people, in words; empty where the status says it all. */
  readonly reason: string;
  /** When the status became this; milliseconds since 1970. */
  readonly sinceMs: number;
  /** The boot that runs or ran last. */
  readonly bootId?: string | undefined;
  /** When `tick` is due next. */
  readonly wakeAtMs?: number | undefined;
  /** Failures in a row, for the back-off. */
  readonly failures: number;
  /** While stopping: what to do about it, until when. */
  readonly stop?: StopPlan | undefined;
  /** While creating: it boots once that is done. */
  readonly startsNext?: boolean | undefined;
  /** While stopping: why it must not be started again but by somebody who asks for it afterwards. */
  readonly compromised?: string | undefined;
  /** Why QEMU says that it shuts down, until it has ended. */
  readonly shutdown?: string | undefined;
}

interface StopPlan {
  readonly next: 'stay' | 'start';
  readonly quitAtMs: number;
  readonly step: 'powerdown' | 'quit' | 'kill';
  readonly deadlineMs: number;
}

export type VmEvent =
  /** To be asked for once; what is needed for the first boot is then made. */
  | { readonly type: 'create' }
  | { readonly type: 'created' }
  | { readonly type: 'create-failed'; readonly reason: string }
  | { readonly type: 'start' }
  /** After `deadlineMs` milliseconds the guest is not asked any more. */
  | { readonly type: 'stop'; readonly deadlineMs: number }
  | { readonly type: 'reboot'; readonly deadlineMs: number }
  | { readonly type: 'booting'; readonly bootId: string }
  /** The guest's CPUs run. */
  | { readonly type: 'running' }
  /** Nothing of that boot runs any more. */
  | { readonly type: 'boot-failed'; readonly reason: string }
  /** QEMU's SHUTDOWN, by its reason. */
  | { readonly type: 'shutdown'; readonly reason: string }
  /** QEMU ended by itself or was ended; `words` say how. */
  | { readonly type: 'ended'; readonly words: string }
  /** The machine that all runs on was restarted, and QEMU ended with it. */
  | { readonly type: 'machine-restarted' }
  /** It ran, or was to, under a lease of its host that has run out: QEMU was ended. */
  | { readonly type: 'lease-ended' }
  /** Somebody in the guest has what only its agent may have: it is ended at once. */
  | { readonly type: 'compromised'; readonly reason: string }
  /** QEMU stopped the guest's CPUs, or goes on. */
  | { readonly type: 'paused'; readonly reason: string }
  | { readonly type: 'resumed' }
  | { readonly type: 'tick' };

export type VmAction = 'create' | 'boot' | 'abort-boot' | 'powerdown' | 'quit' | 'kill';

export interface Step {
  readonly state: VmState;
  readonly actions: readonly VmAction[];
}

/** A guest that boots does not hear its power button; it is pressed again and again. */
const pressEveryMs = 3_000;
const killAfterQuitMs = 5_000;
const backOffMs = { first: 1_000, most: 60_000 } as const;
/** A boot that ran for so long counts as a success. */
const provenAfterMs = 60_000;

export const newVm = (nowMs: number): VmState => ({ status: 'stopped', reason: '', sinceMs: nowMs, failures: 0 });

/** How long to wait after so many failures in a row. */
export const backOff = (failures: number): number =>
  Math.min(backOffMs.most, backOffMs.first * 2 ** Math.min(failures - 1, 16));

export function step(state: VmState, event: VmEvent, policy: VmPolicy, nowMs: number): Step {
  switch (event.type) {
    case 'create':
      return to(state, 'creating', '', nowMs, ['create']);
    case 'created':
      if (state.status !== 'creating') return same(state);
      return state.startsNext === true ? boot(state, '', nowMs) : to(state, 'stopped', 'it was never started', nowMs);
    case 'create-failed':
      return state.status === 'creating' ? to(state, 'failed', event.reason, nowMs) : same(state);
    case 'start':
      return start(state, nowMs);
    case 'stop':
      return stop(state, 'stay', event.deadlineMs, nowMs);
    case 'reboot':
      return stop(state, 'start', event.deadlineMs, nowMs);
    case 'booting':
      return same({ ...state, bootId: event.bootId });
    case 'running':
      return running(state, nowMs);
    case 'boot-failed':
      if (state.status === 'stopping') return stopped(state, 'it was stopped while it started', nowMs);
      return state.status === 'starting' ? failed(state, event.reason, policy, nowMs) : same(state);
    case 'shutdown':
      return same({ ...state, shutdown: event.reason });
    case 'ended':
      return ended(state, event.words, policy, nowMs);
    case 'machine-restarted':
      return machineRestarted(state, policy, nowMs);
    case 'lease-ended':
      return leaseEnded(state, nowMs);
    case 'compromised':
      return compromised(state, event.reason, nowMs);
    case 'paused':
      return state.status === 'running' ? same({ ...state, reason: event.reason }) : same(state);
    case 'resumed':
      return state.status === 'running' ? same({ ...state, reason: '' }) : same(state);
    case 'tick':
      return tick(state, nowMs);
  }
}

const same = (state: VmState): Step => ({ state, actions: [] });

function to(state: VmState, status: VmStatus, reason: string, nowMs: number, actions: readonly VmAction[] = []): Step {
  const { bootId, failures } = state;
  return { state: { status, reason, sinceMs: nowMs, bootId, failures }, actions };
}

const boot = (state: VmState, reason: string, nowMs: number): Step => to(state, 'starting', reason, nowMs, ['boot']);

/** Nothing of it runs. One that failed may be about to start again by itself. */
export const isDown = ({ status }: Pick<VmState, 'status'>): boolean =>
  status === 'stopped' || status === 'failed' || status === 'compromised';

function start(state: VmState, nowMs: number): Step {
  if (state.status === 'creating') return same({ ...state, startsNext: true });
  if (isDown(state)) return boot({ ...state, failures: 0 }, '', nowMs);
  if (state.status === 'stopping' && state.stop) return same({ ...state, stop: { ...state.stop, next: 'start' } });
  return same(state);
}

function stop(state: VmState, next: StopPlan['next'], deadlineMs: number, nowMs: number): Step {
  const plan: StopPlan = { next, step: 'powerdown', quitAtMs: nowMs + deadlineMs, deadlineMs };
  switch (state.status) {
    case 'running': {
      const { state: then } = to(state, 'stopping', next === 'start' ? 'it reboots' : '', nowMs);
      return press({ ...then, stop: plan }, nowMs);
    }
    case 'starting': {
      const { state: then } = to(state, 'stopping', '', nowMs);
      return { state: { ...then, stop: plan }, actions: ['abort-boot'] };
    }
    case 'stopping': {
      if (!state.stop) return same(state);
      // A stop that is asked for again may be more urgent, never less.
      const quitAtMs = Math.min(state.stop.quitAtMs, plan.quitAtMs);
      const both = { ...state.stop, next, quitAtMs, deadlineMs: Math.min(deadlineMs, state.stop.deadlineMs) };
      const wakeAtMs = both.step === 'powerdown' ? Math.min(state.wakeAtMs ?? quitAtMs, quitAtMs) : state.wakeAtMs;
      return same({ ...state, stop: both, wakeAtMs });
    }
    case 'compromised':
      return next === 'start' ? start(state, nowMs) : same(state);
    case 'failed':
    case 'stopped':
      if (next === 'start') return start(state, nowMs);
      return state.wakeAtMs === undefined ? same(state) : to(state, 'stopped', state.reason, nowMs);
    case 'creating':
      return same({ ...state, startsNext: next === 'start' });
  }
}

/** Presses the guest's power button, if there is time left for it. */
function press(state: VmState, nowMs: number): Step {
  const plan = state.stop!;
  if (nowMs >= plan.quitAtMs)
    return {
      state: { ...state, stop: { ...plan, step: 'quit' }, wakeAtMs: nowMs + killAfterQuitMs },
      actions: ['quit'],
    };
  return { state: { ...state, wakeAtMs: Math.min(plan.quitAtMs, nowMs + pressEveryMs) }, actions: ['powerdown'] };
}

function tick(state: VmState, nowMs: number): Step {
  if (state.wakeAtMs === undefined || nowMs < state.wakeAtMs) return same(state);
  if (state.status === 'failed' || state.status === 'stopped') return boot(state, state.reason, nowMs);
  if (state.status !== 'stopping' || !state.stop) return same({ ...state, wakeAtMs: undefined });
  if (state.stop.step === 'powerdown') return press(state, nowMs);
  return { state: { ...state, stop: { ...state.stop, step: 'kill' }, wakeAtMs: undefined }, actions: ['kill'] };
}

function running(state: VmState, nowMs: number): Step {
  if (state.status === 'starting') return to(state, 'running', '', nowMs);
  // It was to be stopped, and had begun to run before it could be called off.
  return state.status === 'stopping' && state.stop ? press(state, nowMs) : same(state);
}

function ended(state: VmState, words: string, policy: VmPolicy, nowMs: number): Step {
  const { shutdown } = state;
  if (state.status === 'stopping') return stopped(state, stopReason(state, words), nowMs);
  if (state.status !== 'running') return same(state);
  if (shutdown === 'guest-shutdown') {
    if (policy.restart !== 'always') return to(state, 'stopped', 'the guest powered off', nowMs);
    return again(state, 'the guest powered off', 'stopped', nowMs);
  }
  if (shutdown === 'guest-reset') {
    if (policy.guestReboot === 'stop') return to(state, 'stopped', 'the guest rebooted', nowMs);
    return boot({ ...state, failures: 0 }, 'the guest rebooted', nowMs);
  }
  if (shutdown === 'host-qmp-quit') return to(state, 'stopped', 'QEMU was told to quit over its monitor', nowMs);
  return failed(state, shutdown === 'guest-panic' ? "the guest's kernel panicked" : words, policy, nowMs);
}

/** What ran is started again at once: it is no failure of its own. */
function machineRestarted(state: VmState, policy: VmPolicy, nowMs: number): Step {
  const reason = 'this machine was restarted';
  switch (state.status) {
    case 'running':
      if (policy.restart === 'no') return to(state, 'failed', `${reason} while it ran`, nowMs);
      return boot({ ...state, failures: 0 }, reason, nowMs);
    case 'starting':
      return boot(state, reason, nowMs);
    case 'stopping':
      return stopped(state, `${reason} while it was being stopped`, nowMs);
    case 'creating':
    case 'stopped':
    case 'failed':
    case 'compromised':
      return same(state);
  }
}

/** It begins again with the next lease, if it is this host's then: that it ended was no failure of its own. */
function leaseEnded(state: VmState, nowMs: number): Step {
  const reason = 'this host was cut off for as long as its lease; it starts when it has another';
  if (state.status === 'stopping') return stopped(state, reason, nowMs);
  return state.status === 'running' || state.status === 'starting' ? boot(state, reason, nowMs) : same(state);
}

function compromised(state: VmState, reason: string, nowMs: number): Step {
  const stop: StopPlan = { next: 'stay', step: 'kill', quitAtMs: nowMs, deadlineMs: 0 };
  switch (state.status) {
    case 'running':
    case 'starting':
    case 'stopping': {
      const { state: then } = to(state, 'stopping', reason, nowMs);
      const action = state.status === 'starting' ? 'abort-boot' : 'kill';
      return { state: { ...then, stop, compromised: reason }, actions: [action] };
    }
    case 'creating':
    case 'stopped':
    case 'failed':
    case 'compromised':
      return same(state);
  }
}

function stopReason(state: VmState, words: string): string {
  if (state.shutdown === 'guest-shutdown') return 'the guest powered off when asked to';
  if (state.stop?.step === 'powerdown') return state.shutdown === 'guest-reset' ? 'the guest rebooted' : words;
  const seconds = Math.round((state.stop?.deadlineMs ?? 0) / 1000);
  const how = state.stop?.step === 'kill' ? 'killed' : 'switched off';
  return `the guest did not power off within ${seconds} s and was ${how}`;
}

function stopped(state: VmState, reason: string, nowMs: number): Step {
  if (state.compromised !== undefined) return to({ ...state, failures: 0 }, 'compromised', state.compromised, nowMs);
  return state.stop?.next === 'start'
    ? boot({ ...state, failures: 0 }, 'it was rebooted', nowMs)
    : to({ ...state, failures: 0 }, 'stopped', reason, nowMs);
}

function failed(state: VmState, reason: string, policy: VmPolicy, nowMs: number): Step {
  return policy.restart === 'no' ? to(state, 'failed', reason, nowMs) : again(state, reason, 'failed', nowMs);
}

/** Boots again after the back-off. */
function again(state: VmState, reason: string, status: 'failed' | 'stopped', nowMs: number): Step {
  const isProven = state.status === 'running' && nowMs - state.sinceMs >= provenAfterMs;
  const failures = isProven ? 1 : state.failures + 1;
  const waitMs = backOff(failures);
  const words = `${reason}; it starts again in ${Math.round(waitMs / 1000)} s`;
  const next = to({ ...state, failures }, status, words, nowMs);
  return { ...next, state: { ...next.state, wakeAtMs: nowMs + waitMs } };
}
