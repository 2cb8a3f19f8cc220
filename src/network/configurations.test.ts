import assert from 'node:assert/strict';
import { test } from 'node:test';
import { ownPrefix, subnet64, tapName } from './attachment.ts';
import { dhcpConfiguration } from './dhcp.ts';
import { filterScript } from './filter.ts';
import { routesConfiguration } from './routes.ts';

const prefix = ownPrefix('/run/porthole');
const tap = tapName(prefix, 'i-1');
const guest = {
  id: 'i-1',
  tap,
  mac: '52:54:00:11:22:33',
  ipv4: '10.20.0.5',
  ipv6: 'fd00:20::5:0:0:7',
  udp: { address: '192.0.2.1', ports: [20_001, 20_002] },
  dns: ['10.0.0.53', 'fd00::53'],
  hasMetadata: true,
};

test('tapName is a name that the kernel takes, another one for each VM and each run directory', () => {
  assert.match(tap, /^ph[0-9a-f]{4}-[0-9a-f]{8}$/);
  assert.equal(new Set([tap, tapName(prefix, 'i-2'), tapName(ownPrefix('/run/other'), 'i-1')]).size, 3);
});

test('subnet64 is the first half of an address', () => {
  assert.equal(subnet64('fd00:20::5:0:0:7'), 'fd00:20::');
  assert.equal(subnet64('2001:db8:1:2:3:4:5:6'), '2001:db8:1:2::');
});

test('dhcpConfiguration has a range with one address for each device', () => {
  const second = { ...guest, id: 'i-2', tap: 'second', ipv4: undefined, ipv6: 'fd00:20::6' };
  const other = { ...guest, id: 'i-3', tap: 'other', ipv4: '10.20.0.6', ipv6: undefined };
  const lines = dhcpConfiguration([guest, second, other]);
  assert.ok(lines.includes('\ndhcp-lease-max=100000\n'));
  assert.equal(lines.split('\ndhcp-range=fd00:20::,static,off-link,64\n').length, 2, 'a subnet once');
  assert.ok(lines.includes(`\nshared-network=${tap},10.20.0.5\ndhcp-range=10.20.0.5,static,255.255.255.255\n`));
  assert.ok(lines.includes(`\ndhcp-host=52:54:00:11:22:33,tag:${tap},10.20.0.5,[fd00:20::5:0:0:7]\n`));
  assert.ok(lines.includes(`\ndhcp-option=tag:${tap},option6:dns-server,[fd00::53]\n`));
  assert.ok(lines.includes('\ndhcp-host=52:54:00:11:22:33,tag:other,10.20.0.6\n'));
});

test('filterScript lists what each guest may send as, and no empty list', () => {
  const script = filterScript(prefix, [guest]);
  assert.ok(script.includes(`add element inet ${prefix} guests4 { "${tap}" . 52:54:00:11:22:33 . 10.20.0.5 }`));
  assert.ok(script.includes(`add element inet ${prefix} guests6 { "${tap}" . 52:54:00:11:22:33 . fd00:20::5:0:0:7 }`));
  assert.ok(
    script.includes(`add element ip ${prefix} shared { 192.0.2.1 . 20001 : 10.20.0.5, 192.0.2.1 . 20002 : 10.20.0.5 }`),
  );
  assert.doesNotMatch(filterScript(prefix, []), /add element/);
});

test('routesConfiguration announces guests to peers of their family, and takes single addresses from them alone', () => {
  const peers = [
    { address: '10.0.0.2', as: undefined },
    { address: 'fd00:1::2', as: 64_513 },
  ];
  const text = routesConfiguration({ as: 64_512, routerId: '10.0.0.1', peers }, prefix, [guest]);
  assert.ok(text.includes(`route 10.20.0.5/32 via "${tap}";`));
  assert.ok(text.includes(`route fd00:20::5:0:0:7/128 via "${tap}";`));
  assert.match(
    text,
    /neighbor 10\.0\.0\.2 as 64512;\n {2}ipv4 \{ import where net\.len = 32; export where source = RTS_STATIC;/,
  );
  assert.match(text, /neighbor fd00:1::2 as 64513;\n {2}ipv6 \{ import where net\.len = 128;/);
});
