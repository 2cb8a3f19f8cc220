/**
 * Images that VMs of this host stand on: fetched by digest from who keeps the region's, once for however many VMs, and dropped
 * when no VM has them any more.
 */
import { linkSync, mkdirSync, readdirSync, rmSync, statSync } from 'node:fs';
import { join } from 'node:path';
import {
  type FileName,
  fetchBlob,
  fetchDocument,
  type ImageConfig,
  type ManifestParts,
  readConfig,
  readManifest,
} from '../images/index.ts';
import {
  type ImageCopy,
  ImageStore,
  type ImageStoreOptions,
  QemuError,
  type StoredImage,
  unlessAborted,
} from '../qemu/index.ts';
import type { BlobBytes, VmRecord } from '../records/index.ts';

/** Where images come from. */
export interface ImageSource {
  /** A blob of the image of a VM of this host, from `offset` on. Asked again while it is HOST_UNAVAILABLE. */
  blob(
    vm: VmRecord,
    digest: string,
    options: { readonly offset: number; readonly signal: AbortSignal },
  ): Promise<BlobBytes>;
  /** The file of a blob, where it is on this machine. */
  pathOf?(digest: string): string;
}

interface Fetching {
  readonly done: Promise<void>;
  readonly cancel: AbortController;
  waiting: number;
}

export class ImageCache {
  readonly #images: ImageStore;
  readonly #source: ImageSource;
  readonly #gid: number | undefined;
  readonly #directory: string;
  readonly #fetching = new Map<string, Fetching>();

  constructor(options: ImageStoreOptions, source: ImageSource) {
    this.#images = new ImageStore(options);
    this.#source = source;
    this.#gid = options.gid;
    // What is there of one that broke off is gone on with by the next daemon.
    this.#directory = join(options.directory, 'coming');
    mkdirSync(this.#directory, { recursive: true, mode: 0o700 });
  }

  /** The image of a VM, once it is here. What the source throws, IMAGE_CHANGED, DISK_FULL, the signal's reason. */
  async of(vm: VmRecord, signal: AbortSignal): Promise<StoredImage> {
    if (vm.image === undefined) throw new Error('the VM has no image to boot from; create one with an image');
    const { digest } = vm.image;
    for (;;) {
      signal.throwIfAborted();
      try {
        return this.#images.open(digest);
      } catch (error) {
        if (!(error instanceof QemuError && error.code === 'IMAGE_MISSING')) throw error;
      }
      const known = this.#fetching.get(digest);
      try {
        await this.#joined(known ?? this.#begin(vm, digest), signal);
      } catch (error) {
        // Another VM's fetch may fail because that VM went.
        if (known === undefined || signal.aborted) throw error;
      }
    }
  }

  /** Drops what can be fetched again and is not among these. */
  keepOnly(digests: ReadonlySet<string>): void {
    for (const digest of this.#images.copies()) if (!digests.has(digest)) this.#images.remove(digest);
    for (const hex of readdirSync(this.#directory)) {
      const digest = `sha256:${hex}`;
      if (!digests.has(digest) && !this.#fetching.has(digest)) rmSync(join(this.#directory, hex), { recursive: true });
    }
  }

  /** Ends what is on its way. */
  async close(): Promise<void> {
    const fetching = [...this.#fetching.values()];
    for (const { cancel } of fetching) cancel.abort();
    await Promise.allSettled(fetching.map(({ done }) => done));
    await this.#images.close();
  }

  async #joined(fetching: Fetching, signal: AbortSignal): Promise<void> {
    fetching.waiting++;
    try {
      await unlessAborted(fetching.done, signal);
    } finally {
      if (--fetching.waiting === 0) fetching.cancel.abort();
    }
  }

  #begin(vm: VmRecord, digest: string): Fetching {
    const cancel = new AbortController();
    const done = this.#fetch(vm, digest, cancel.signal).finally(() => this.#fetching.delete(digest));
    // Told to whoever waits.
    done.catch(() => {});
    const fetching: Fetching = { done, cancel, waiting: 0 };
    this.#fetching.set(digest, fetching);
    return fetching;
  }

  async #fetch(vm: VmRecord, digest: string, signal: AbortSignal): Promise<void> {
    const read = (blob: string, offset: number): Promise<BlobBytes> => this.#source.blob(vm, blob, { offset, signal });
    const manifest = readManifest(await fetchDocument(digest, { read, signal }));
    const config = readConfig(await fetchDocument(manifest.config.digest, { read, signal }));
    const directory = join(this.#directory, digest.replace('sha256:', ''));
    mkdirSync(directory, { recursive: true, mode: 0o700 });
    const files: Partial<Record<FileName, string>> = {};
    for (const [name, blob] of Object.entries(manifest.files) as [FileName, ManifestParts['config']][]) {
      const file = join(directory, name);
      if (!this.#linked(blob.digest, file)) await fetchBlob(blob, file, { read, signal });
      files[name] = file;
    }
    await this.#images.keep(digest, copyOf(digest, files, config));
    rmSync(directory, { recursive: true });
  }

  /** Whether it is here now as another name of a file of this machine, which our QEMUs may read. */
  #linked(digest: string, file: string): boolean {
    const from = this.#source.pathOf?.(digest);
    if (from === undefined || (process.getuid?.() === 0 && statSync(from).gid !== (this.#gid ?? 0))) return false;
    rmSync(file, { force: true });
    try {
      linkSync(from, file);
      return true;
    } catch {
      // On another file system.
      return false;
    }
  }
}

const copyOf = (
  digest: string,
  { disk, kernel, initrd }: Partial<Record<FileName, string>>,
  config: ImageConfig,
): ImageCopy => {
  if (config.kind === 'disk' && disk !== undefined) return { kind: 'disk', disk, virtualBytes: config.virtualBytes };
  if (config.kind === 'kernel' && kernel !== undefined)
    return { kind: 'kernel', kernel, initrd, commandLine: config.commandLine };
  throw new QemuError('IMAGE_FAILED', `the image "${digest}" does not have the files that it says; add it again`);
};
