import assert from 'node:assert/strict';
import { test } from 'node:test';
import { AllowList } from './allow-list.ts';

test('AllowList allows this machine, and addresses and prefixes that it was given', () => {
  const list = new AllowList(['192.0.2.7', '198.51.100.0/24', '2001:db8::/32']);
  const allowed = [
    '127.0.0.1',
    '127.1.2.3',
    '::1',
    '192.0.2.7',
    '198.51.100.255',
    '2001:db8::1',
    '2001:db8:0:0:1:2:3:4',
  ];
  for (const address of allowed) assert.equal(list.allows(address), true, address);
  for (const address of ['192.0.2.8', '198.51.101.0', '10.0.0.1', '2001:db9::1', '::', '0.0.0.0', '::2', 'nonsense'])
    assert.equal(list.allows(address), false, address);
  assert.equal(new AllowList([]).allows('192.0.2.7'), false);
});
