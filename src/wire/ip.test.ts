import assert from 'node:assert/strict';
import { test } from 'node:test';
import fc from 'fast-check';
import { addressOf, numberOf } from './ip.ts';

test('addressOf gives back what numberOf was given', () => {
  for (const address of ['0.0.0.0', '10.20.0.5', '255.255.255.255'])
    assert.equal(addressOf('ipv4', numberOf('ipv4', address)), address);
  for (const [address, number] of [
    ['::', 0n],
    ['::1', 1n],
    ['fd00:20::5', 0xfd00_0020_0000_0000_0000_0000_0000_0005n],
    ['1:2:3:4:5:6:7:8', 0x0001_0002_0003_0004_0005_0006_0007_0008n],
  ] as const) {
    assert.equal(numberOf('ipv6', address), number);
    assert.equal(addressOf('ipv6', number), address);
  }
  fc.assert(
    fc.property(fc.bigInt(0n, (1n << 128n) - 1n), (number) => numberOf('ipv6', addressOf('ipv6', number)) === number),
  );
});
