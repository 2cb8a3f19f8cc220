import assert from 'node:assert/strict';
import { Buffer } from 'node:buffer';
import { execFileSync } from 'node:child_process';
import { chmodSync, mkdtempSync, readFileSync, rmSync, statSync, symlinkSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { type TestContext, test } from 'node:test';
import fc from 'fast-check';
import { StoreError, type StoreErrorCode } from './error.ts';
import { createKeyFile, dataKeyOf, Keyring, readKeyFile } from './seal.ts';

const temporary = (t: TestContext): string => {
  const directory = mkdtempSync(join(tmpdir(), 'porthole-seal-'));
  t.after(() => rmSync(directory, { recursive: true, force: true }));
  return directory;
};

const throwsWith = (run: () => unknown, code: StoreErrorCode, message = /./): void => {
  assert.throws(run, (error) => error instanceof StoreError && error.code === code && message.test(error.message));
};

const ring = (t: TestContext) => {
  const file = join(temporary(t), 'key');
  createKeyFile(file);
  const master = readKeyFile(file);
  const keyring = new Keyring(Buffer.from('store id'));
  const wrapped = keyring.make(1, master);
  assert(keyring.add(wrapped, master));
  return { keyring, master, wrapped };
};

const key = Buffer.from('key');
const needsRoot = process.getuid?.() === 0 ? false : 'this needs root';

test('Keyring opens what it sealed, and nothing when a bit, the key, the version or the store differs', (t) => {
  const { keyring } = ring(t);
  fc.assert(
    fc.property(fc.uint8Array({ maxLength: 40 }), fc.nat(), (value, at) => {
      const sealed = keyring.seal('region', key, 7, value);
      assert.deepEqual([...keyring.open('region', key, 7, sealed)], [...value]);
      throwsWith(() => keyring.open('region', Buffer.from('kez'), 7, sealed), 'STORE_DAMAGED', /put in the place/);
      throwsWith(() => keyring.open('region', key, 8, sealed), 'STORE_DAMAGED');
      throwsWith(() => keyring.open('global', key, 7, sealed), 'STORE_DAMAGED');
      const bit = at % (sealed.length * 8);
      sealed[bit >> 3]! ^= 1 << (bit & 7);
      throwsWith(() => keyring.open('region', key, 7, sealed), 'STORE_DAMAGED');
    }),
    { numRuns: 100 },
  );
  for (let length = 0; length < 40; length++)
    throwsWith(() => keyring.open('region', key, 7, new Uint8Array(length).fill(1)), 'STORE_DAMAGED');
});

test('Keyring never seals alike when it seals the same twice', (t) => {
  const { keyring } = ring(t);
  const once = keyring.seal('region', key, 1, Buffer.from('value'));
  assert.notDeepEqual(once, keyring.seal('region', key, 1, Buffer.from('value')));
});

test('Keyring takes no data key when another master key, place or store wrapped it', (t) => {
  const { master, wrapped } = ring(t);
  const other = ring(t);
  assert.equal(new Keyring(Buffer.from('store id')).add(wrapped, other.master), false);
  assert.equal(new Keyring(Buffer.from('other id')).add(wrapped, master), false);
  assert.equal(new Keyring(Buffer.from('store id')).add({ id: 2, wrapped: wrapped.wrapped }, master), false);
});

test('Keyring seals by the newest data key and opens by any until it forgets one', (t) => {
  const { keyring, master } = ring(t);
  const old = keyring.seal('region', key, 1, Buffer.from('old'));
  assert(keyring.add(keyring.make(2, master), master));
  const fresh = keyring.seal('region', key, 1, Buffer.from('new'));
  assert.deepEqual([dataKeyOf(old), dataKeyOf(fresh)], [1, 2]);
  assert.equal(Buffer.from(keyring.open('region', key, 1, old)).toString(), 'old');
  keyring.forget(1);
  throwsWith(() => keyring.open('region', key, 1, old), 'STORE_DAMAGED');
  assert.equal(Buffer.from(keyring.open('region', key, 1, fresh)).toString(), 'new');
});

test('createKeyFile makes a file for its owner and never replaces one', (t) => {
  const file = join(temporary(t), 'key');
  createKeyFile(file);
  assert.equal(statSync(file).mode & 0o777, 0o600);
  const text = readFileSync(file);
  throwsWith(() => createKeyFile(file), 'STORE_EXISTS', /never replaced/);
  assert.deepEqual(readFileSync(file), text);
  assert.match(readKeyFile(file).fingerprint, /^[0-9a-f]{16}$/);
});

test('createKeyFile says what to do where it may not make a file', { skip: needsRoot }, (t) => {
  const directory = temporary(t);
  throwsWith(
    () => createKeyFile(join(directory, 'none/key')),
    'STORE_FAILED',
    /there is no directory ".*none"; make it/,
  );
  const script = `import { createKeyFile } from ${JSON.stringify(new URL('./seal.ts', import.meta.url).href)};
    try { createKeyFile(${JSON.stringify(join(directory, 'key'))}) } catch (error) { console.log(error.message) }`;
  const told = execFileSync(
    'unshare',
    // A view of files of its own, as ProtectSystem=strict gives to a service.
    ['--mount', 'sh', '-c', 'mount -t tmpfs -o ro none "$0" && exec "$1" --input-type=module -e "$2"'].concat(
      directory,
      process.execPath,
      script,
    ),
    { encoding: 'utf8' },
  );
  assert.match(told, /".*" is read-only for this process; name a file in the state directory, or.*ReadWritePaths=/);
});

test('readKeyFile says what to do when the file is missing, open to others or no key', (t) => {
  const directory = temporary(t);
  const file = join(directory, 'key');
  throwsWith(() => readKeyFile(file), 'STORE_KEY_MISSING', /put it back.*if it is lost, that is final/);
  createKeyFile(file);
  chmodSync(file, 0o640);
  throwsWith(() => readKeyFile(file), 'STORE_KEY_EXPOSED', /has mode 0640.*chmod 600/);
  chmodSync(file, 0o600);
  for (const text of ['', 'short', `${Buffer.alloc(33).toString('base64')}\n`, 'x'.repeat(5000), '!'.repeat(44)]) {
    writeFileSync(file, text);
    throwsWith(() => readKeyFile(file), 'STORE_KEY_INVALID', /32 bytes in base64/);
  }
  throwsWith(() => readKeyFile(directory), 'STORE_KEY_INVALID', /not a regular file/);
  symlinkSync('key', join(directory, 'link'));
  throwsWith(() => readKeyFile(join(directory, 'link')), 'STORE_FAILED', /ELOOP/);
});
