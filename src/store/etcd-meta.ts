/**
 * What belongs to all stores below one prefix of an etcd: their id, their epoch and their data keys, in one key of etcd.
 * Every transaction makes it a condition that this key is as it was read, so nobody seals by a data key that another
 * manager has forgotten, and nobody writes into an epoch that is over.
 */
import { Buffer } from 'node:buffer';
import { randomBytes } from 'node:crypto';
import { existsSync } from 'node:fs';
import { StoreError } from './error.ts';
import { type EtcdClient, Patience } from './etcd-client.ts';
import { compares, type KeyValue } from './etcd-schema.ts';
import { createKeyFile, Keyring, type MasterKey, readKeyFile, type WrappedDataKey } from './seal.ts';

interface DataKey extends WrappedDataKey {
  /** etcd's revision when it was made. */
  readonly since: number;
}

interface Meta {
  readonly id: Uint8Array;
  readonly epoch: number;
  readonly fingerprint: string;
  readonly dataKeys: readonly DataKey[];
}

const format = 1;

const encode = ({ id, epoch, fingerprint, dataKeys }: Meta): Buffer =>
  Buffer.from(
    JSON.stringify({
      format,
      id: Buffer.from(id).toString('base64'),
      epoch,
      fingerprint,
      dataKeys: dataKeys.map((key) => ({ ...key, wrapped: Buffer.from(key.wrapped).toString('base64') })),
    }),
  );

/** StoreError STORE_FOREIGN, STORE_TOO_NEW. */
const decode = (value: Uint8Array, place: string): Meta => {
  try {
    const read = JSON.parse(Buffer.from(value).toString()) as Record<keyof Meta | 'format', unknown>;
    if (typeof read.format === 'number' && read.format > format)
      throw new StoreError(
        'STORE_TOO_NEW',
        `${place} was written by a newer version of Porthole (format ${read.format}, known here ${format}); upgrade, or give another prefix`,
      );
    const dataKeys = read.dataKeys as (Omit<DataKey, 'wrapped'> & { readonly wrapped: string })[];
    return {
      id: Buffer.from(read.id as string, 'base64'),
      epoch: read.epoch as number,
      fingerprint: read.fingerprint as string,
      dataKeys: dataKeys.map((key) => ({ ...key, wrapped: Buffer.from(key.wrapped, 'base64') })),
    };
  } catch (error) {
    if (error instanceof StoreError) throw error;
    throw new StoreError('STORE_FOREIGN', `${place} holds something that is not a store's; give another prefix`, error);
  }
};

export class EtcdMeta {
  /** Of etcd. */
  readonly key: Uint8Array;
  readonly epoch: number;
  readonly keyring: Keyring;
  readonly #client: EtcdClient;
  readonly #place: string;
  #master: MasterKey;
  #meta: Meta;
  #revision: number;

  private constructor(client: EtcdClient, place: string, key: Uint8Array, master: MasterKey, kv: KeyValue) {
    this.#client = client;
    this.#place = place;
    this.key = key;
    this.#master = master;
    this.#meta = decode(kv.value, place);
    this.#revision = kv.modRevision;
    this.epoch = this.#meta.epoch;
    this.keyring = new Keyring(this.#meta.id);
    this.#addKeys();
  }

  /**
   * Makes the stores where there are none, unless they must exist, and with them the key file where that is not there either.
   * StoreError STORE_MISSING, STORE_KEY_*, STORE_FOREIGN, STORE_TOO_NEW, STORE_UNAVAILABLE.
   */
  static async open(
    client: EtcdClient,
    prefix: string,
    { keyFile, mustExist = false }: { readonly keyFile: string; readonly mustExist?: boolean | undefined },
  ): Promise<EtcdMeta> {
    const place = `the prefix "${prefix}" of etcd`;
    const key = Buffer.from(`${prefix}/meta`);
    for (;;) {
      const { kvs } = await client.ask('Range', { key });
      if (kvs[0] !== undefined) return new EtcdMeta(client, place, key, readKeyFile(keyFile), kvs[0]);
      if (mustExist)
        throw new StoreError(
          'STORE_MISSING',
          `there is no store below ${place}; are the address and the prefix right?`,
        );
      if (!existsSync(keyFile)) createKeyFile(keyFile);
      const master = readKeyFile(keyFile);
      const id = randomBytes(16);
      const first = { ...new Keyring(id).make(1, master), since: 0 };
      const value = encode({ id, epoch: 1, fingerprint: master.fingerprint, dataKeys: [first] });
      // Where another was first, or this one's answer was lost, it is read.
      await client.ask('Txn', putAt(key, 0, value));
    }
  }

  /** Of etcd's key, to be a condition. */
  get revision(): number {
    return this.#revision;
  }

  /** etcd's revision when the newest data key was made. */
  get newestSince(): number {
    return this.#meta.dataKeys.at(-1)!.since;
  }

  /** When the condition was not met. STORE_REFUSED: the epoch is another; STORE_KEY_WRONG, STORE_FOREIGN. */
  async reload(signal?: AbortSignal): Promise<Uint8Array> {
    const { kvs } = await this.#client.ask('Range', { key: this.key }, signal);
    const [found] = kvs;
    if (found === undefined)
      throw new StoreError(
        'STORE_FOREIGN',
        `the stores below ${this.#place} were removed; restore them, or start anew`,
      );
    this.#take(decode(found.value, this.#place), found.modRevision);
    return found.value;
  }

  #take(meta: Meta, revision: number): void {
    if (meta.epoch !== this.epoch || !Buffer.from(meta.id).equals(this.#meta.id))
      throw new StoreError(
        'STORE_REFUSED',
        `${this.#place} was restored from a snapshot; start every daemon of it anew`,
      );
    if (revision < this.#revision) return;
    this.#meta = meta;
    this.#addKeys();
    this.#revision = revision;
  }

  #addKeys(): void {
    const { fingerprint, dataKeys } = this.#meta;
    for (const key of dataKeys) {
      if (this.keyring.has(key.id)) continue;
      this.#mustBeMaster(fingerprint);
      if (!this.keyring.add(key, this.#master))
        throw new StoreError(
          'STORE_DAMAGED',
          `the data keys of ${this.#place} were changed; restore a snapshot of etcd`,
        );
    }
  }

  #mustBeMaster(fingerprint: string): void {
    if (fingerprint !== this.#master.fingerprint)
      throw new StoreError(
        'STORE_KEY_WRONG',
        `"${this.#master.file}" is not the key of ${this.#place}: it is key ${this.#master.fingerprint}, and the store was sealed by key ${fingerprint}; give that one. If it is lost, what the store holds is lost for good, and so are snapshots of the time`,
      );
  }

  /** STORE_KEY_WRONG: the key file was changed. @param now etcd's revision. @returns the new key's id */
  async newDataKey(now: number, signal?: AbortSignal): Promise<number> {
    await this.#change((meta) => {
      this.#mustBeMaster(meta.fingerprint);
      const key = this.keyring.make(Math.max(...meta.dataKeys.map(({ id }) => id)) + 1, this.#master);
      return { ...meta, dataKeys: [...meta.dataKeys, { ...key, since: now }] };
    }, signal);
    return this.keyring.newest;
  }

  /** Those before `oldest`. */
  async forgetDataKeys(oldest: number, signal?: AbortSignal): Promise<void> {
    await this.#change((meta) => ({ ...meta, dataKeys: meta.dataKeys.filter(({ id }) => id >= oldest) }), signal);
  }

  /** STORE_KEY_*. */
  async changeKeyFile(keyFile: string): Promise<void> {
    const master = readKeyFile(keyFile);
    await this.#change((meta) => {
      const since = new Map(meta.dataKeys.map((key) => [key.id, key.since]));
      const dataKeys = this.keyring
        .rewrap(master)
        .flatMap((key) => (since.has(key.id) ? [{ ...key, since: since.get(key.id)! }] : []));
      return { ...meta, fingerprint: master.fingerprint, dataKeys };
    });
    this.#master = master;
  }

  /**
   * After a snapshot was restored: what was given out before means nothing any more. This object is of no use then.
   * STORE_REFUSED: another changed the epoch or the data keys meanwhile.
   */
  async raiseEpoch(nowSeconds: number): Promise<number> {
    const epoch = Math.max(this.epoch + 1, nowSeconds);
    const value = encode({ ...this.#meta, epoch });
    const { succeeded } = await this.#client.ask('Txn', putAt(this.key, this.#revision, value));
    if (succeeded) return epoch;
    // Or it was asked twice, and only the first answer was lost.
    const { kvs } = await this.#client.ask('Range', { key: this.key });
    if (kvs[0] !== undefined && Buffer.from(kvs[0].value).equals(value)) return epoch;
    throw new StoreError(
      'STORE_REFUSED',
      `${this.#place} was changed meanwhile by another; stop it, and do this again`,
    );
  }

  /** Read, changed and put until nobody else did so between. */
  async #change(edit: (meta: Meta) => Meta, signal?: AbortSignal): Promise<void> {
    const patience = new Patience(this.#client.patienceMs, signal);
    for (;;) {
      const next = edit(this.#meta);
      const value = encode(next);
      try {
        const request = putAt(this.key, this.#revision, value);
        const { succeeded, header } = await this.#client.call('Txn', request, signal);
        if (succeeded) return this.#take(next, header.revision);
      } catch (error) {
        await patience.after(error, 'whether the data keys were changed is open');
      }
      // Not by us, or by us and the answer was lost: what we put is like nothing else.
      if (Buffer.from(await this.reload(signal)).equals(value)) return;
    }
  }
}

const putAt = (key: Uint8Array, modRevision: number, value: Uint8Array) => ({
  compare: [{ result: compares.equal, target: compares.mod, key, modRevision }],
  success: [{ requestPut: { key, value } }],
  failure: [],
});
