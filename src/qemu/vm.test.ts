import assert from 'node:assert/strict';
import { test } from 'node:test';
import { until } from '../../test/until.ts';
import { Vm, type VmOptions } from './vm.ts';
import { isDown } from './vm-state.ts';

test('Vm is stopped while it waits for what its machine needs', async () => {
  let asked: AbortSignal | undefined;
  const vm = new Vm({
    policy: { restart: 'always', guestReboot: 'boot' },
    machine: (signal: AbortSignal) => {
      asked = signal;
      return new Promise(() => {});
    },
    saveRuntime: async () => {},
    commitBoot: async () => assert.fail('it does not boot'),
    onState: () => {},
    onTrouble: () => {},
  } as unknown as VmOptions);
  vm.start();
  await until('it to start', () => asked);
  vm.stop();
  const { status, reason } = await vm.until(isDown, AbortSignal.timeout(60_000));
  assert.deepEqual([status, reason], ['stopped', 'it was stopped while it started']);
  assert.equal(asked?.aborted, true, 'who makes ready for it is told');
  await vm.release();
});
