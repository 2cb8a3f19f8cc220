/**
 * Sealing: AES-256-GCM with random nonces, the additional data being what the bytes are for, so that a sealed value opens
 * only in the place, and as the version, that it was sealed for. Values are sealed by data keys; data keys are kept beside
 * them, sealed by the key-encryption key, which is kept in a file of its own and nowhere else.
 */
import { Buffer } from 'node:buffer';
import { createCipheriv, createDecipheriv, createHmac, randomBytes } from 'node:crypto';
import { closeSync, constants, fstatSync, fsyncSync, openSync, readFileSync, writeSync } from 'node:fs';
import { dirname } from 'node:path';
import { codeOf, StoreError } from './error.ts';
import { syncToDisk } from './files.ts';

const algorithm = 'aes-256-gcm';
const keyBytes = 32;
const nonceBytes = 12;
const tagBytes = 16;

type Bytes = Uint8Array<ArrayBuffer>;

/** @returns nonce, ciphertext, tag */
const encrypt = (key: Uint8Array, additionalData: Uint8Array, plaintext: Uint8Array, header: Uint8Array): Bytes => {
  const sealed = new Uint8Array(header.length + nonceBytes + plaintext.length + tagBytes);
  const nonce = randomBytes(nonceBytes);
  const cipher = createCipheriv(algorithm, key, nonce, { authTagLength: tagBytes });
  cipher.setAAD(additionalData);
  sealed.set(header);
  sealed.set(nonce, header.length);
  sealed.set(cipher.update(plaintext), header.length + nonceBytes);
  cipher.final();
  sealed.set(cipher.getAuthTag(), sealed.length - tagBytes);
  return sealed;
};

/** Undefined when it was not sealed so: another key, other additional data, or changed since. */
const decrypt = (key: Uint8Array, additionalData: Uint8Array, sealed: Uint8Array): Bytes | undefined => {
  if (sealed.length < nonceBytes + tagBytes) return undefined;
  const decipher = createDecipheriv(algorithm, key, sealed.subarray(0, nonceBytes), { authTagLength: tagBytes });
  decipher.setAAD(additionalData);
  decipher.setAuthTag(sealed.subarray(sealed.length - tagBytes));
  try {
    const plaintext = decipher.update(sealed.subarray(nonceBytes, sealed.length - tagBytes));
    decipher.final();
    return new Uint8Array(plaintext);
  } catch {
    return undefined;
  }
};

// The key-encryption key

export interface MasterKey {
  readonly file: string;
  readonly bytes: Uint8Array;
  /** Tells keys apart and tells nothing of them: 16 hexadecimal digits. */
  readonly fingerprint: string;
}

/** Makes a file with a new key, mode 0600, on the disk when it returns. StoreError STORE_EXISTS, STORE_FAILED. */
export const createKeyFile = (file: string): void => {
  let fd: number;
  try {
    fd = openSync(file, constants.O_WRONLY | constants.O_CREAT | constants.O_EXCL | constants.O_NOFOLLOW, 0o600);
  } catch (error) {
    if (codeOf(error) === 'EEXIST')
      throw new StoreError('STORE_EXISTS', `making the key file "${file}" failed: it exists; a key is never replaced`);
    throw new StoreError('STORE_FAILED', `making the key file "${file}" failed: ${whyNotMade(error, file)}`, error);
  }
  try {
    writeSync(fd, `${randomBytes(keyBytes).toString('base64')}\n`);
    fsyncSync(fd);
  } finally {
    closeSync(fd);
  }
  syncToDisk(dirname(file));
};

const whyNotMade = (error: unknown, file: string): string => {
  const directory = dirname(file);
  switch (codeOf(error)) {
    case 'EROFS':
      return `"${directory}" is read-only for this process; name a file in the state directory, or, where this is a systemd service with ProtectSystem=, allow the directory: "systemctl edit porthole", [Service], ReadWritePaths=${directory}, and restart it`;
    case 'EACCES':
    case 'EPERM':
      return `this process may not write to "${directory}"; name a file in a directory that it may write to`;
    case 'ENOENT':
      return `there is no directory "${directory}"; make it, or name a file elsewhere`;
    default:
      return codeOf(error) ?? String(error);
  }
};

/**
 * A key file is one line, 32 bytes in base64, of mode 0600.
 * StoreError: STORE_KEY_MISSING, STORE_KEY_EXPOSED, STORE_KEY_INVALID, STORE_FAILED.
 */
export const readKeyFile = (file: string): MasterKey => {
  let fd: number;
  try {
    fd = openSync(file, constants.O_RDONLY | constants.O_NOFOLLOW | constants.O_NONBLOCK);
  } catch (error) {
    if (codeOf(error) === 'ENOENT') {
      throw new StoreError(
        'STORE_KEY_MISSING',
        `there is no key file "${file}"; put it back from where you keep its copy. Without that key nothing in the store can ever be read again, by anybody: if it is lost, that is final`,
        error,
      );
    }
    throw new StoreError('STORE_FAILED', `reading the key file "${file}" failed: ${codeOf(error)}`, error);
  }
  try {
    const stat = fstatSync(fd);
    if (!stat.isFile()) throw new StoreError('STORE_KEY_INVALID', `the key file "${file}" is not a regular file`);
    if ((stat.mode & 0o077) !== 0) {
      const bits = `0${(stat.mode & 0o777).toString(8)}`;
      throw new StoreError(
        'STORE_KEY_EXPOSED',
        `the key file "${file}" has mode ${bits}, so others may have read the key; run: chmod 600 '${file}', then change the key if they could`,
      );
    }
    const text = stat.size <= 4096 ? readFileSync(fd, 'latin1').trim() : '';
    const bytes = Buffer.from(text, 'base64');
    if (bytes.length !== keyBytes || bytes.toString('base64') !== text) {
      throw new StoreError(
        'STORE_KEY_INVALID',
        `the key file "${file}" holds no key: it must be one line, ${keyBytes} bytes in base64`,
      );
    }
    const fingerprint = createHmac('sha256', bytes).update('porthole key fingerprint').digest('hex').slice(0, 16);
    return { file, bytes, fingerprint };
  } finally {
    closeSync(fd);
  }
};

// Data keys

export interface WrappedDataKey {
  readonly id: number;
  readonly wrapped: Uint8Array;
}

const none = new Uint8Array(0);

/** `storeId`: random bytes that the file was given when it was made. */
const wrapData = (storeId: Uint8Array, id: number): Uint8Array =>
  Buffer.concat([Buffer.from(`porthole data key ${id}\0`), storeId]);

const formatVersion = 1;
/** Format version u8, data key u32 big-endian. */
const headerBytes = 5;

/** The data key that a value was sealed by; −1 when it is no sealed value. */
export const dataKeyOf = (sealed: Uint8Array): number =>
  sealed.length < headerBytes + nonceBytes + tagBytes || sealed[0] !== formatVersion
    ? -1
    : new DataView(sealed.buffer, sealed.byteOffset).getUint32(1);

/** Seals and opens with the data keys of one file. Seals by the newest, opens by any. */
export class Keyring {
  readonly #storeId: Uint8Array;
  readonly #keys = new Map<number, Uint8Array>();
  #newest = 0;

  constructor(storeId: Uint8Array) {
    this.#storeId = storeId;
  }

  get newest(): number {
    return this.#newest;
  }

  get size(): number {
    return this.#keys.size;
  }

  has(id: number): boolean {
    return this.#keys.has(id);
  }

  /** Undefined when the master key does not open it. */
  #unwrap({ id, wrapped }: WrappedDataKey, master: MasterKey): Uint8Array | undefined {
    const key = decrypt(master.bytes, wrapData(this.#storeId, id), wrapped);
    return key?.length === keyBytes ? key : undefined;
  }

  /** Whether the master key opened it. */
  add(key: WrappedDataKey, master: MasterKey): boolean {
    const bytes = this.#unwrap(key, master);
    if (bytes === undefined) return false;
    this.#keys.set(key.id, bytes);
    this.#newest = Math.max(this.#newest, key.id);
    return true;
  }

  /** A new data key, wrapped, to be kept first and then added. */
  make(id: number, master: MasterKey): WrappedDataKey {
    return { id, wrapped: encrypt(master.bytes, wrapData(this.#storeId, id), randomBytes(keyBytes), none) };
  }

  /** All data keys, wrapped by another master key. */
  rewrap(master: MasterKey): WrappedDataKey[] {
    return [...this.#keys].map(([id, bytes]) => ({
      id,
      wrapped: encrypt(master.bytes, wrapData(this.#storeId, id), bytes, none),
    }));
  }

  forget(id: number): void {
    this.#keys.get(id)?.fill(0);
    this.#keys.delete(id);
  }

  /** Header, then place and version: the key's own bytes come last, so that no two places look the same. */
  #additionalData(header: Uint8Array, store: string, key: Uint8Array, version: number | string): Uint8Array {
    return Buffer.concat([header, this.#storeId, Buffer.from(`${store}\0${version}\0`), key]);
  }

  /** @param version whatever tells this value of the key from its others: the revision that put it, in SQLite */
  seal(store: string, key: Uint8Array, version: number | string, value: Uint8Array): Bytes {
    const header = new Uint8Array(headerBytes);
    header[0] = formatVersion;
    new DataView(header.buffer).setUint32(1, this.#newest);
    return encrypt(this.#keys.get(this.#newest)!, this.#additionalData(header, store, key, version), value, header);
  }

  /** StoreError STORE_DAMAGED. */
  open(store: string, key: Uint8Array, version: number | string, sealed: Uint8Array): Bytes {
    const dataKey = this.#keys.get(dataKeyOf(sealed));
    const header = sealed.subarray(0, headerBytes);
    const value =
      dataKey && decrypt(dataKey, this.#additionalData(header, store, key, version), sealed.subarray(headerBytes));
    if (value === undefined) {
      throw new StoreError(
        'STORE_DAMAGED',
        `the value of ${JSON.stringify(Buffer.from(key).toString())} at ${typeof version === 'number' ? 'revision' : 'version'} ${version} in the ${store} store was changed, or put in the place of another; restore the store from a backup`,
      );
    }
    return value;
  }
}
