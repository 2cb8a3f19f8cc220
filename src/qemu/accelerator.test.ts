import assert from 'node:assert/strict';
import { test } from 'node:test';
import { findAccelerator, probe } from './accelerator.ts';

test('probe boots its sector under emulation', async (t) => {
  if (process.arch !== 'x64') return t.skip('the sector is x86-64 code');
  assert.equal(await probe('tcg', 60_000), undefined);
});

test('probe says what was wrong where nothing boots', async (t) => {
  if (process.arch !== 'x64') return t.skip('the sector is x86-64 code');
  assert.match((await probe('tcg', 1)) ?? '', /nothing happened within 1 ms/);
});

test('findAccelerator gives KVM only where it works, and else a reason', async () => {
  const { accelerator, reason, groups } = await findAccelerator();
  if (accelerator === 'kvm') assert.deepEqual([reason, groups.length], ['', 1]);
  else assert.match(reason, /\/dev\/kvm|is not found out/);
});
