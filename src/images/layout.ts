/**
 * Images in a directory in OCI image layout (`oci-layout`, `index.json`, `blobs/sha256/…`). Each is in the index under
 * `NAME:VERSION`. Several processes may use one directory: what changes the index is done under a lock, and blobs come in
 * whole, by their digest.
 */
import {
  chmodSync,
  closeSync,
  createReadStream,
  existsSync,
  openSync,
  readdirSync,
  readFileSync,
  renameSync,
  rmSync,
  statSync,
  writeFileSync,
} from 'node:fs';
import { join } from 'node:path';
import { z } from 'zod';
import { makeSearchable, syncDirectory } from '../qemu/index.ts';
import type { ImageDigest, ImageRef } from '../records/index.ts';
import { flock, LOCK_EX } from '../sys/index.ts';
import { ImageRefusal } from './error.ts';
import { Descriptor, type Document, indexType, type ManifestParts, partsOf, readManifest } from './manifest.ts';

const refName = 'org.opencontainers.image.ref.name';
const Index = z.looseObject({ schemaVersion: z.literal(2), manifests: z.array(Descriptor) });
type Index = z.infer<typeof Index>;

export const tagOf = ({ name, version }: ImageRef): string => `${name}:${version}`;

const pieceBytes = 256 * 1024;

export class ImageLayout {
  readonly #directory: string;
  readonly #blobs: string;

  /** Makes the directory where it is not there; drops blobs that no image has. HOST_UNAVAILABLE when it is another's. */
  constructor(directory: string) {
    this.#directory = directory;
    this.#blobs = join(directory, 'blobs/sha256');
    makeSearchable(this.#blobs);
    for (const above of [directory, join(directory, 'blobs')]) chmodSync(above, 0o711);
    this.alone(() => {
      const marker = join(directory, 'oci-layout');
      if (!existsSync(marker)) this.#write(marker, { imageLayoutVersion: '1.0.0' });
      this.#removeUnused(this.#read());
    });
  }

  /** Digest of the manifest; undefined where there is no such image. */
  find(image: ImageRef): string | undefined {
    return taggedIn(this.#read(), tagOf(image))?.digest;
  }

  /** HOST_NOT_FOUND, HOST_INVALID. */
  manifest(digest: string): ManifestParts {
    return readManifest(this.document(digest));
  }

  /** A small blob. HOST_NOT_FOUND. */
  document(digest: string): Uint8Array {
    return readFileSync(this.pathOf(digest));
  }

  has(digest: string): boolean {
    return existsSync(this.#fileOf(digest));
  }

  /** HOST_NOT_FOUND. */
  pathOf(digest: string): string {
    const file = this.#fileOf(digest);
    if (existsSync(file)) return file;
    throw new ImageRefusal('HOST_NOT_FOUND', `the images of this region have nothing of the digest "${digest}"`);
  }

  /** HOST_NOT_FOUND. */
  read(digest: string, offset: number): { readonly sizeBytes: number; readonly bytes: AsyncIterable<Uint8Array> } {
    const path = this.pathOf(digest);
    const { size: sizeBytes } = statSync(path);
    if (offset >= sizeBytes) return { sizeBytes, bytes: nothing() };
    return { sizeBytes, bytes: createReadStream(path, { start: offset, highWaterMark: pieceBytes }) };
  }

  /**
   * Keeps an image under its name. `files`: those of its parts that are not here yet, by digest, which are moved here; they
   * are what their digest says, on the disk, and nobody else can change them. False, and nothing is done, when a part that was
   * here has gone with another image. HOST_WRONG_STATE: the name is another's, which is not overwritten.
   */
  put(
    image: ImageRef,
    manifest: Document,
    documents: readonly Document[],
    files: ReadonlyMap<string, string>,
  ): boolean {
    return this.alone(() => {
      const tag = tagOf(image);
      const { digest: there = manifest.descriptor.digest } = taggedIn(this.#read(), tag) ?? {};
      if (there !== manifest.descriptor.digest)
        throw new ImageRefusal('HOST_WRONG_STATE', `another image is kept as "${tag}" by now; give another version`);
      const parts = Object.values(readManifest(manifest.bytes).files);
      if (!parts.every(({ digest }) => files.has(digest) || this.has(digest))) return false;
      for (const [digest, file] of files) {
        if (this.has(digest)) rmSync(file, { force: true });
        else renameSync(file, this.#fileOf(digest));
      }
      for (const { bytes, descriptor } of [...documents, manifest]) this.#writeBlob(descriptor.digest, bytes);
      syncDirectory(this.#blobs);
      const index = this.#read();
      const others = index.manifests.filter(({ annotations }) => tagIn(annotations) !== tag);
      const entry = { ...manifest.descriptor, annotations: { [refName]: tag } };
      this.#writeIndex({ ...index, manifests: [...others, entry] });
      return true;
    });
  }

  /** Drops a name that has this digest, and what no other image has. */
  remove(image: ImageDigest): void {
    this.alone(() => {
      const index = this.#read();
      if (taggedIn(index, tagOf(image))?.digest !== image.digest) return;
      const manifests = index.manifests.filter(({ annotations }) => tagIn(annotations) !== tagOf(image));
      const now = { ...index, manifests };
      this.#writeIndex(now);
      this.#removeUnused(now);
    });
  }

  #removeUnused({ manifests }: Index): void {
    const used = new Set<string>();
    try {
      for (const { digest } of manifests) {
        used.add(digest);
        for (const part of partsOf(this.manifest(digest))) used.add(part.digest);
      }
    } catch {
      // What a damaged one names is not known.
      return;
    }
    for (const hex of readdirSync(this.#blobs)) if (!used.has(`sha256:${hex}`)) rmSync(join(this.#blobs, hex));
  }

  #read(): Index {
    const file = join(this.#directory, 'index.json');
    if (!existsSync(file)) return { schemaVersion: 2, mediaType: indexType, manifests: [] };
    const parsed = Index.safeParse(JSON.parse(readFileSync(file, 'utf8')));
    if (parsed.success) return parsed.data;
    throw new ImageRefusal('HOST_UNAVAILABLE', `"${file}" is no index of images; restore it, or move it away`);
  }

  #writeIndex(index: Index): void {
    this.#write(join(this.#directory, 'index.json'), index);
  }

  #writeBlob(digest: string, bytes: Uint8Array): void {
    const file = this.#fileOf(digest);
    if (!existsSync(file)) this.#write(file, bytes);
  }

  #write(file: string, content: object | Uint8Array): void {
    const partial = join(this.#directory, 'new');
    writeFileSync(partial, content instanceof Uint8Array ? content : JSON.stringify(content), {
      mode: 0o600,
      flush: true,
    });
    renameSync(partial, file);
    syncDirectory(this.#directory);
  }

  #fileOf(digest: string): string {
    return join(this.#blobs, digest.replace('sha256:', ''));
  }

  /** No other process changes the directory meanwhile. HOST_UNAVAILABLE. */
  alone<T>(act: () => T): T {
    const lock = openSync(join(this.#directory, 'lock'), 'a', 0o600);
    try {
      const errno = flock(lock, LOCK_EX);
      if (errno < 0) throw new ImageRefusal('HOST_UNAVAILABLE', `"${this.#directory}" cannot be locked`);
      return act();
    } finally {
      closeSync(lock);
    }
  }
}

const tagIn = (annotations: unknown): unknown => (annotations as Record<string, unknown> | undefined)?.[refName];

const taggedIn = ({ manifests }: Index, tag: string): Descriptor | undefined =>
  manifests.find(({ annotations }) => tagIn(annotations) === tag);

async function* nothing(): AsyncGenerator<never, void> {}
