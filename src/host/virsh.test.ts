import assert from 'node:assert/strict';
import { test } from 'node:test';
import fc from 'fast-check';
import { type DomainRun, isSameRun, readEvent, readListing } from './virsh.ts';

const one = '11111111-2222-3333-4444-555555555555';
const two = 'aaaaaaaa-bbbb-cccc-dddd-eeeeeeeeeeee';

/** As virsh 9.0 prints `listingCommands`; older ones fill up names. */
const listing = `${one} web-1
${two} stopped                       

3 web-1

Domain: 'web-1'
  cpu.time=3094811000
  cpu.user=2880000000
  cpu.system=210000000

`;

test('readListing takes what runs with its life, and what does not', () => {
  assert.deepEqual(
    readListing(listing),
    new Map<string, DomainRun | undefined>([
      ['web-1', { uuid: one, id: 3, cpuNs: 3_094_811_000 }],
      ['stopped', undefined],
    ]),
  );
});

test('readListing takes a life whose time libvirt does not know', () => {
  assert.deepEqual(readListing(`${one} a\n\n1 a\n\nDomain: 'a'\n\n`), new Map([['a', { uuid: one, id: 1 }]]));
});

/** What libvirt takes as a name, and more: no line feed, no blank at an end. */
const anyName = fc
  .string({ unit: 'binary', minLength: 1, maxLength: 30 })
  .filter((name) => !name.includes('\n') && name === name.trim());

test('readListing takes domains of any names for what they are', () => {
  const domains = fc.uniqueArray(fc.record({ name: anyName, uuid: fc.uuid(), runs: fc.boolean(), time: fc.nat() }), {
    selector: ({ name }) => name,
    maxLength: 8,
  });
  fc.assert(
    fc.property(domains, (all) => {
      const running = all.filter(({ runs }) => runs);
      const text = [
        ...all.map(({ name, uuid }) => `${uuid} ${name}`),
        '',
        ...running.map(({ name }, index) => `${index + 1} ${name}`),
        '',
        ...running.flatMap(({ name, time }) => [`Domain: '${name}'`, `  cpu.time=${time}`, '']),
      ].join('\n');
      const expected = all.map(({ name, uuid, runs, time }) => {
        const id = running.findIndex((other) => other.name === name) + 1;
        return [name, runs ? { uuid, id, cpuNs: time } : undefined] as const;
      });
      assert.deepEqual(readListing(text), new Map(expected));
    }),
  );
});

test('readListing and readEvent read any bytes without an error', () => {
  const anything = fc.oneof(
    fc.string({ unit: 'binary' }),
    fc.uint8Array({ maxLength: 300 }).map((bytes) => Buffer.from(bytes).toString()),
    // What was printed, cut and changed anywhere.
    fc
      .tuple(fc.nat(listing.length), fc.nat(listing.length), fc.string({ unit: 'binary', maxLength: 3 }))
      .map(([from, to, between]) => listing.slice(0, from) + between + listing.slice(to)),
  );
  fc.assert(
    fc.property(anything, (text) => {
      for (const run of readListing(text).values()) {
        if (run === undefined) continue;
        assert.match(run.uuid, /^[0-9a-f-]{36}$/);
        assert.ok(run.id >= 0);
      }
      for (const line of text.split('\n')) readEvent(line);
    }),
  );
});

const at = '2026-11-23 11:59:58.123+0000';

test('readEvent takes reboots with domain and time, and changes of life', () => {
  assert.deepEqual(readEvent(`${at}: event 'reboot' for domain 'web-1'`), {
    what: 'reboot',
    domain: 'web-1',
    atMs: Date.UTC(2026, 10, 23, 11, 59, 58, 123),
  });
  assert.deepEqual(readEvent(`${at}: event 'lifecycle' for domain 'web-1': Started Booted`), { what: 'lifecycle' });
  for (const line of ['', `${at}: event 'rtc-change' for domain 'web-1': 0`, `event 'reboot' for domain 'web-1'`])
    assert.equal(readEvent(line), undefined, line);
});

test('readEvent takes a reboot of a domain of any name for no other domain’s', () => {
  fc.assert(
    fc.property(anyName, (domain) => {
      const event = readEvent(`${at}: event 'reboot' for domain '${domain}'`);
      assert.ok(event?.what === 'reboot');
      assert.equal(event.domain, domain);
    }),
    { examples: [["web-1': Started"], ["web-1'"], ["' for domain 'web-1"], ['web-1\r'], ['\u{2028}web-1']] },
  );
});

test('isSameRun tells a life from the next one', () => {
  const life = { uuid: one, id: 3, cpuNs: 1_000 };
  assert.ok(isSameRun(life, life));
  assert.ok(isSameRun(life, { ...life, cpuNs: 2_000 }));
  assert.ok(isSameRun(life, { uuid: one, id: 3 }));
  assert.ok(isSameRun({ uuid: one, id: 3 }, life));
  assert.ok(!isSameRun(life, { ...life, id: 4 }));
  assert.ok(!isSameRun(life, { ...life, uuid: two }));
  // libvirt's daemon counted anew.
  assert.ok(!isSameRun(life, { ...life, cpuNs: 999 }));
});
