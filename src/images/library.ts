/** The images of a region in a directory: made from files here, given to hosts by digest. */
import { createHash } from 'node:crypto';
import { closeSync, createReadStream, linkSync, mkdirSync, readdirSync, rmSync, statSync } from 'node:fs';
import { stat } from 'node:fs/promises';
import { join } from 'node:path';
import { checkRoom, type ImageSource, ImageStore, type ImageWork, QemuError, type StoredImage } from '../qemu/index.ts';
import type {
  BlobBytes,
  BlobOptions,
  CallOptions,
  ImageBytes,
  ImageDigest,
  ImageFacts,
  ImageFile,
  ImagePort,
  ImageRef,
  ImageRequest,
  IncomingUpload,
  PartialUpload,
  ProgressOptions,
  Upload,
  UploadPiece,
} from '../records/index.ts';
import { ImageRefusal } from './error.ts';
import { fetchBlob, fetchDocument } from './fetch.ts';
import { ImageLayout, tagOf } from './layout.ts';
import { claimMaking, forgetMakings, keepComingMs } from './making.ts';
import {
  configOf,
  type Descriptor,
  type Document,
  digestOf,
  type FileName,
  manifestOf,
  manifestType,
  partsOf,
  readConfig,
  readManifest,
} from './manifest.ts';
import { type Recipes, recipeOf } from './recipe.ts';

export interface ImageLibraryOptions {
  /** Made if it is not there; several libraries may have the same. */
  readonly directory: string;
  /** Where images are made, in that directory, by this library alone and over its restarts. Default: `making`. */
  readonly makingName?: string | undefined;
  /** Under which images are read and rewritten; root only, and nobody else's uid. */
  readonly sandboxUid?: number | undefined;
  /** Group that may read the files, where hosts of this machine link them. */
  readonly gid?: number | undefined;
  readonly recipes: Recipes;
  /** Where a host of this machine kept images before there was a library. */
  readonly before?: string | undefined;
}

export class ImageLibrary implements ImagePort, AsyncDisposable {
  readonly #options: ImageLibraryOptions;
  readonly #layout: ImageLayout;
  /** Where images are made, until they are in the layout. */
  readonly #made: ImageStore;
  /** What there is of images that are copied. */
  readonly #coming: string;
  /** Where in it something is on its way. */
  readonly #copying = new Set<string>();
  readonly #links: string;
  readonly #claim: number;
  #adding = 0;

  constructor(options: ImageLibraryOptions) {
    const { directory, makingName = 'making', sandboxUid, gid } = options;
    this.#options = options;
    this.#layout = new ImageLayout(directory);
    const making = join(directory, makingName);
    this.#claim = this.#layout.alone(() => {
      const claim = claimMaking(making);
      forgetMakings(directory);
      return claim;
    });
    this.#made = new ImageStore({ directory: making, sandboxUid, gid });
    this.#forgetMade();
    this.#coming = join(making, 'coming');
    this.#links = join(making, 'new-links');
    mkdirSync(this.#links);
  }

  #forgetMade(): void {
    for (const { digest } of this.#made.list()) this.#made.remove(digest);
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.#made.close();
    closeSync(this.#claim);
  }

  async addImage({ source, ...image }: ImageRequest, { signal, progress }: ProgressOptions): Promise<ImageFacts> {
    const work = { signal, onProgress: (step: string, done: number): void => progress({ step, done, total: 1 }) };
    this.#adding++;
    try {
      return await this.#put(image, await this.#make(source, work), signal);
    } catch (error) {
      throw refusalOf(error);
    } finally {
      // Two may have made the same.
      if (--this.#adding === 0) this.#forgetMade();
    }
  }

  #make(source: ImageRequest['source'], work: ImageWork): Promise<StoredImage> {
    switch (source.kind) {
      case 'disk':
        return this.#made.addDisk({ file: sourceOf(source.disk), format: source.format }, work);
      case 'kernel': {
        const { kernel, initrd, commandLine } = source;
        return this.#made.addKernel(
          { kernel: sourceOf(kernel), initrd: initrd && sourceOf(initrd), commandLine },
          work,
        );
      }
      case 'recipe':
        return this.#made.build(recipeOf(this.#options.recipes, source.recipe), work);
    }
  }

  async openUpload(account: string, sizeBytes: number): Promise<IncomingUpload> {
    return refusing(async () => {
      const file = this.#made.openUpload(account, sizeBytes);
      return {
        receive: (chunks, { signal } = {}) => refusing(() => file.receive(chunks, signal), 'HOST_INVALID'),
        [Symbol.asyncDispose]: () => file[Symbol.asyncDispose](),
      };
    }, 'HOST_TOO_LARGE');
  }

  resumeUpload({ account, ...piece }: UploadPiece, chunks: AsyncIterable<Uint8Array>, { signal }: CallOptions = {}) {
    return refusing(() => this.#made.partialUploads.receive(account, piece, chunks, signal), 'HOST_TOO_LARGE');
  }

  async findUpload(account: string, id: string): Promise<Upload | PartialUpload> {
    try {
      return this.#made.partialUploads.find(account, id);
    } catch (error) {
      if (error instanceof QemuError && error.code === 'IMAGE_MISSING')
        throw new ImageRefusal('HOST_NOT_FOUND', error.message, error);
      throw refusalOf(error);
    }
  }

  async findImage(image: ImageRef): Promise<string | undefined> {
    return this.#layout.find(image);
  }

  async removeImage(image: ImageDigest): Promise<void> {
    this.#layout.remove(image);
  }

  async copyImage({ name, version, digest }: ImageDigest, from: ImageBytes, options: ProgressOptions): Promise<void> {
    const { progress, signal = new AbortController().signal } = options;
    const read = (blob: string, offset: number): Promise<BlobBytes> =>
      from.blob({ name, version, digest }, blob, { offset, signal });
    const document = async (of: string): Promise<Document> => {
      const bytes = await fetchDocument(of, { read, signal });
      return { bytes, descriptor: { mediaType: manifestType, digest: of, size: bytes.length } };
    };
    const manifest = await document(digest);
    const parts = readManifest(manifest.bytes);
    const config = await document(parts.config.digest);
    readConfig(config.bytes);
    const blobs = Object.values(parts.files);
    const total = blobs.reduce((sum, { size }) => sum + size, 0);
    // What is there of it when this breaks off is gone on with. No other has that name, so nobody else writes there.
    const directory = join(this.#coming, digestOf(Buffer.from(`${tagOf({ name, version })} ${digest}`)).slice(-64));
    this.#forgetComing();
    mkdirSync(directory, { recursive: true, mode: 0o700 });
    this.#copying.add(directory);
    try {
      const files = new Map<string, string>();
      do {
        let before = 0;
        for (const blob of blobs) {
          if (!files.has(blob.digest) && !this.#layout.has(blob.digest)) {
            const file = join(directory, blob.digest.slice(-64));
            const there = statSync(file, { throwIfNoEntry: false })?.size ?? 0;
            checkRoom(directory, { sizeBytes: blob.size, comingBytes: blob.size - there });
            const onBytes = (done: number): void => progress({ step: 'copying', done: before + done, total });
            await fetchBlob(blob, file, { read, signal, onBytes });
            this.#made.protect(file);
            files.set(blob.digest, file);
          }
          before += blob.size;
        }
      } while (!this.#layout.put({ name, version }, manifest, [config], files));
      rmSync(directory, { recursive: true, force: true });
    } catch (error) {
      throw refusalOf(error);
    } finally {
      this.#copying.delete(directory);
    }
  }

  /** What came of copies that nobody went on with. */
  #forgetComing(): void {
    mkdirSync(this.#coming, { recursive: true, mode: 0o700 });
    for (const name of readdirSync(this.#coming)) {
      const directory = join(this.#coming, name);
      const paths = [directory, ...readdirSync(directory).map((file) => join(directory, file))];
      const newestMs = Math.max(...paths.map((path) => statSync(path).mtimeMs));
      if (!this.#copying.has(directory) && newestMs + keepComingMs < Date.now()) rmSync(directory, { recursive: true });
    }
  }

  async adoptImage({ digest, ...image }: ImageDigest): Promise<ImageFacts | undefined> {
    const { before } = this.#options;
    if (before === undefined) return undefined;
    const host = new ImageStore({ directory: before });
    let found: StoredImage;
    try {
      found = host.open(digest);
    } catch {
      return undefined;
    }
    const facts = await this.#put(image, found);
    host.beCopy(digest);
    return facts;
  }

  async blob({ digest: of }: ImageDigest, digest: string, { offset }: BlobOptions): Promise<BlobBytes> {
    if (digest !== of && !partsOf(this.#layout.manifest(of)).some((part) => part.digest === digest))
      throw new ImageRefusal('HOST_NOT_FOUND', `"${digest}" is no part of the image "${of}"`);
    return this.#layout.read(digest, offset);
  }

  /** The file of a blob of an image here, for who may link it. HOST_NOT_FOUND. */
  pathOf(digest: string): string {
    return this.#layout.pathOf(digest);
  }

  /** Links the files of an image into the layout, and names it there. */
  async #put(image: ImageRef, made: StoredImage, signal?: AbortSignal): Promise<ImageFacts> {
    const paths: Partial<Record<FileName, string | undefined>> =
      made.kind === 'disk' ? { disk: made.path } : { kernel: made.kernel, initrd: made.initrd };
    const files: Partial<Record<FileName, Omit<Descriptor, 'mediaType'>>> = {};
    const links = new Map<string, string>();
    for (const [name, path] of Object.entries(paths) as [FileName, string | undefined][]) {
      if (path === undefined) continue;
      const { size } = await stat(path);
      const digest = name === 'disk' ? made.digest : await fileDigest(path, signal);
      files[name] = { digest, size };
      const link = join(this.#links, `${digest.slice(-64)}-${name}`);
      rmSync(link, { force: true });
      linkSync(path, link);
      links.set(digest, link);
    }
    const virtualSizeBytes = made.kind === 'disk' ? made.virtualBytes : made.fileBytes;
    const config = configOf(
      made.kind === 'disk'
        ? { kind: 'disk', virtualBytes: virtualSizeBytes }
        : { kind: 'kernel', commandLine: made.commandLine },
    );
    const manifest = manifestOf(made.kind, config.descriptor, files);
    signal?.throwIfAborted();
    this.#layout.put(image, manifest, [config], links);
    return { digest: manifest.descriptor.digest, sizeBytes: made.fileBytes, virtualSizeBytes };
  }
}

const sourceOf = (file: ImageFile): ImageSource => (file.from === 'host' ? file.path : { upload: file.id });

const fileDigest = async (path: string, signal: AbortSignal | undefined): Promise<string> => {
  const hash = createHash('sha256');
  for await (const chunk of createReadStream(path, { signal, highWaterMark: 1024 * 1024 }))
    hash.update(chunk as Buffer);
  return `sha256:${hash.digest('hex')}`;
};

const refusing = async <T>(work: () => Promise<T>, refused: ImageRefusal['code']): Promise<T> => {
  try {
    return await work();
  } catch (error) {
    throw refusalOf(error, refused);
  }
};

/** `refused`: what IMAGE_REFUSED is. */
const refusalOf = (error: unknown, refused: ImageRefusal['code'] = 'HOST_INVALID'): unknown => {
  if (!(error instanceof QemuError)) return error;
  const codes: Partial<Record<QemuError['code'], ImageRefusal['code']>> = {
    IMAGE_REFUSED: refused,
    IMAGE_MISSING: 'HOST_INVALID',
    DISK_FULL: 'HOST_FULL',
    UPLOAD_OFFSET: 'HOST_WRONG_STATE',
  };
  return new ImageRefusal(codes[error.code] ?? 'HOST_UNAVAILABLE', error.message, error);
};
