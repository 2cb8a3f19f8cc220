/** The images of this machine, by digest: what strangers made is checked and rewritten before anything boots from it. */
import { createHash } from 'node:crypto';
import {
  chmodSync,
  chownSync,
  closeSync,
  constants,
  createReadStream,
  createWriteStream,
  existsSync,
  fstatSync,
  fsyncSync,
  mkdirSync,
  mkdtempSync,
  openSync,
  readdirSync,
  readFileSync,
  renameSync,
  rmSync,
  statSync,
  writeFileSync,
} from 'node:fs';
import { join } from 'node:path';
import { Transform } from 'node:stream';
import { pipeline } from 'node:stream/promises';
import { MAX_DISK_BYTES, readHeader, syncDirectory } from './disks.ts';
import { messageOf, QemuError } from './error.ts';
import { PartialUploads } from './partial-uploads.ts';
import { makeSearchable } from './paths.ts';
import { runSandboxed } from './sandbox.ts';
import { type IncomingFile, Uploads, uploadPrefix } from './uploads.ts';

export interface DiskImage {
  readonly kind: 'disk';
  /** `sha256:` and 64 hex digits, of the file that is stored. */
  readonly digest: string;
  readonly path: string;
  readonly virtualBytes: number;
  readonly fileBytes: number;
}

export interface KernelImage {
  readonly kind: 'kernel';
  /** Of the JSON that names the digests of its files and its command line. */
  readonly digest: string;
  readonly path: string;
  readonly kernel: string;
  readonly initrd?: string;
  readonly commandLine: string;
  readonly fileBytes: number;
}

export type StoredImage = DiskImage | KernelImage;

/** Files of an image that was made elsewhere. */
export type ImageCopy =
  | { readonly kind: 'disk'; readonly disk: string; readonly virtualBytes: number }
  | {
      readonly kind: 'kernel';
      readonly kernel: string;
      readonly initrd?: string | undefined;
      readonly commandLine: string;
    };

type ImageFileRecord = StoredImage & { readonly stamp: string; readonly isCopy?: boolean };

export type ImageStep = 'copying' | 'checking' | 'converting' | 'digesting' | 'building';

export interface ImageWork {
  readonly signal?: AbortSignal | undefined;
  /** `done` goes from 0 to 1 within a step. */
  readonly onProgress?: ((step: ImageStep, done: number) => void) | undefined;
}

/** A file that an image is made from: one of this machine, which is copied, or one that was uploaded, which is used up. */
export type ImageSource = string | { readonly upload: string };

export interface ImageStoreOptions {
  /** `STATE/images`; made if it is not there. */
  readonly directory: string;
  /** Under which images are read and rewritten; root only, and nobody else's uid. */
  readonly sandboxUid?: number | undefined;
  /** Group that may read images; every QEMU is given it. Without one they are for our user alone. */
  readonly gid?: number | undefined;
  /** Largest file and largest disk that is taken; 1 TiB and 64 TiB unless given. */
  readonly maxFileBytes?: number;
  readonly maxVirtualBytes?: number;
}

const defaultMaxFileBytes = 1024 ** 4;
const cpuSeconds = 6 * 60 * 60;
const kernelFileBytes = 1024 ** 3;

export class ImageStore {
  readonly #options: ImageStoreOptions;
  readonly #directory: string;
  readonly #uploads: Uploads;
  readonly partialUploads: PartialUploads;

  constructor(options: ImageStoreOptions) {
    this.#options = options;
    this.#directory = options.directory;
    makeSearchable(this.#directory);
    // Left by a process that was killed; nothing in it was ever an image.
    for (const name of readdirSync(this.#directory))
      if (name.startsWith('new-') || name.startsWith(uploadPrefix) || name.endsWith('.unnamed'))
        rmSync(join(this.#directory, name), { recursive: true, force: true });
    const { directory, maxFileBytes = defaultMaxFileBytes } = options;
    const uploads = new Uploads({ directory, maxFileBytes });
    this.#uploads = uploads;
    this.partialUploads = new PartialUploads({ directory, uploads });
  }

  /** Makes room for a file that an image is to be made from soon. IMAGE_REFUSED (too large), DISK_FULL, UPLOADS_MANY. */
  openUpload(owner: string, sizeBytes: number): IncomingFile {
    return this.#uploads.open(owner, sizeBytes);
  }

  /** Forgets uploads that wait. */
  close(): Promise<void> {
    return this.#uploads.close();
  }

  /**
   * Takes a disk image of a stranger. The format is what the caller says, never probed. Refused (IMAGE_REFUSED, with the reason)
   * is a qcow2 with a backing file, an external data file, encryption, internal snapshots or what is not known here; the rest is
   * rewritten as a plain qcow2. Other errors: DISK_FULL, IMAGE_FAILED.
   */
  async addDisk(
    source: { readonly file: ImageSource; readonly format: 'qcow2' | 'raw' },
    work: ImageWork = {},
  ): Promise<DiskImage> {
    const { maxFileBytes = defaultMaxFileBytes, maxVirtualBytes = MAX_DISK_BYTES, sandboxUid } = this.#options;
    return this.#stage(async (stage) => {
      // Checked is a copy that the uploader can't change any more.
      const copy = join(stage, 'upload');
      const output = join(stage, 'output');
      mkdirSync(output, { mode: 0o700 });
      await this.#obtain(source.file, copy, maxFileBytes, work);
      work.onProgress?.('checking', 0);
      const virtualBytes = source.format === 'raw' ? rawSize(copy) : readHeader(copy).virtualBytes;
      if (virtualBytes > maxVirtualBytes)
        throw new QemuError('IMAGE_REFUSED', `the image has ${virtualBytes} bytes, and ${maxVirtualBytes} are allowed`);
      const clean = join(output, 'clean.qcow2');
      // The directory itself stays ours, so that nothing in it can be replaced by a link.
      chmodSync(stage, 0o711);
      if (sandboxUid !== undefined) for (const path of [copy, output]) chownSync(path, sandboxUid, sandboxUid);
      await this.#convert({ from: copy, format: source.format, to: clean, virtualBytes }, work);
      if (sandboxUid !== undefined) chownSync(output, 0, 0);
      const header = readHeader(clean);
      if (header.virtualBytes !== virtualBytes)
        throw new QemuError('IMAGE_FAILED', 'converting the image failed: the result has another size; try again');
      const digest = await digestOf(clean, work);
      const path = this.#pathOf(digest, '.qcow2');
      this.protect(clean);
      return this.#publish(clean, { kind: 'disk', digest, path, virtualBytes, fileBytes: header.fileBytes });
    });
  }

  /** Takes a kernel, an initrd and a command line to boot without firmware. They are taken as they are: QEMU only copies them. */
  async addKernel(
    source: { readonly kernel: ImageSource; readonly initrd?: ImageSource | undefined; readonly commandLine: string },
    work: ImageWork = {},
  ): Promise<KernelImage> {
    return this.#stage(async (stage) => {
      const output = join(stage, 'output');
      makeSearchable(output);
      const digests: Record<string, string> = {};
      let fileBytes = 0;
      for (const name of ['kernel', 'initrd'] as const) {
        const file = source[name];
        if (file === undefined) continue;
        const to = join(output, name);
        fileBytes += await this.#obtain(file, to, kernelFileBytes, work);
        digests[name] = await digestOf(to, work);
        this.protect(to);
      }
      const { commandLine } = source;
      const digest = `sha256:${createHash('sha256')
        .update(JSON.stringify({ ...digests, commandLine }))
        .digest('hex')}`;
      return this.#publish(output, this.#kernelOf(digest, source, fileBytes));
    });
  }

  /**
   * Keeps a copy of an image whose bytes were compared with the digest by which it is known where it came from, and was
   * checked there. The files are used up; those with another name are linked, and as they should be.
   */
  async keep(digest: string, copy: ImageCopy): Promise<StoredImage> {
    return this.#stage(async (stage) => {
      const files =
        copy.kind === 'disk' ? [copy.disk] : [copy.kernel, ...(copy.initrd === undefined ? [] : [copy.initrd])];
      for (const file of files) if (statSync(file).nlink === 1) this.protect(file);
      const fileBytes = files.reduce((sum, file) => sum + statSync(file).size, 0);
      if (copy.kind === 'disk') {
        const { virtualBytes } = copy;
        const path = this.#pathOf(digest, '.qcow2');
        return this.#publish(copy.disk, { kind: 'disk', digest, path, virtualBytes, fileBytes }, true);
      }
      const output = join(stage, 'output');
      makeSearchable(output);
      for (const name of ['kernel', 'initrd'] as const) {
        const file = copy[name];
        if (file !== undefined) renameSync(file, join(output, name));
      }
      return this.#publish(output, this.#kernelOf(digest, copy, fileBytes), true);
    });
  }

  #kernelOf(
    digest: string,
    { initrd, commandLine }: { readonly initrd?: unknown; readonly commandLine: string },
    fileBytes: number,
  ): KernelImage {
    const path = this.#pathOf(digest, '.kernel');
    const kernel = join(path, 'kernel');
    const more = initrd === undefined ? {} : { initrd: join(path, 'initrd') };
    return { kind: 'kernel', digest, path, kernel, ...more, commandLine, fileBytes };
  }

  /**
   * Runs a recipe, a program of this machine that is trusted: `PROGRAM… DIRECTORY` must leave `image.json` there, which says
   * `{"kind":"kernel","kernel":FILE,"initrd":FILE,"commandLine":TEXT}` or `{"kind":"disk","disk":FILE,"format":"raw"|"qcow2"}`
   * with names of files in that directory. The result is taken as any other image is.
   */
  async build(recipe: readonly [string, ...string[]], work: ImageWork = {}): Promise<StoredImage> {
    const { runRecipe } = await import('./recipes.ts');
    return this.#stage(async (stage) => {
      const built = await runRecipe(recipe, stage, work);
      return built.kind === 'disk' ? this.addDisk(built, work) : this.addKernel(built, work);
    });
  }

  /** The image of that digest. IMAGE_MISSING where it is not stored, IMAGE_CHANGED where its file is not what was stored. */
  open(digest: string): StoredImage {
    const recordFile = this.#recordOf(digest);
    let record: ImageFileRecord;
    try {
      record = JSON.parse(readFileSync(recordFile, 'utf8')) as ImageFileRecord;
    } catch (error) {
      throw new QemuError('IMAGE_MISSING', `no image "${digest}" is stored on this machine; add it again`, error);
    }
    const { stamp, isCopy: _, ...image } = record;
    if (!existsSync(image.path))
      throw new QemuError('IMAGE_MISSING', `the file of image "${digest}" is gone: "${image.path}"; add it again`);
    if (stampOf(image) !== stamp)
      throw new QemuError(
        'IMAGE_CHANGED',
        `the file of image "${digest}" was changed: "${image.path}"; disks that stand on it may be broken, add it again`,
      );
    return image;
  }

  list(): StoredImage[] {
    return this.#records().flatMap(({ digest }) => {
      try {
        return [this.open(digest)];
      } catch {
        return [];
      }
    });
  }

  #records(): ImageFileRecord[] {
    return readdirSync(this.#directory)
      .filter((name) => name.endsWith('.json'))
      .toSorted()
      .map((name) => JSON.parse(readFileSync(join(this.#directory, name), 'utf8')) as ImageFileRecord);
  }

  #writeRecord(record: ImageFileRecord): void {
    const file = this.#recordOf(record.digest);
    writeFileSync(`${file}.new`, `${JSON.stringify(record)}\n`, { mode: 0o600, flush: true });
    renameSync(`${file}.new`, file);
    syncDirectory(this.#directory);
  }

  /** Whoever calls knows that no disk stands on it. Absent images are no error. */
  remove(digest: string): void {
    this.#removeFiles(digest);
    syncDirectory(this.#directory);
  }

  #removeFiles(digest: string): void {
    const record = this.#recordOf(digest);
    for (const file of [record, `${record}.new`]) rmSync(file, { force: true });
    for (const suffix of ['.qcow2', '.kernel']) rmSync(this.#pathOf(digest, suffix), { recursive: true, force: true });
  }

  /** Digests of what can be had again from where it came. */
  copies(): string[] {
    return this.#records().flatMap(({ digest, isCopy }) => (isCopy === true ? [digest] : []));
  }

  /** It can be had again from elsewhere, from now on. Nothing happens where it is not stored. */
  beCopy(digest: string): void {
    const record = this.#records().find((one) => one.digest === digest);
    if (record !== undefined) this.#writeRecord({ ...record, isCopy: true });
  }

  async #obtain(source: ImageSource, to: string, maxBytes: number, work: ImageWork): Promise<number> {
    if (typeof source === 'string') return copyFile(source, to, maxBytes, work);
    renameSync(this.#uploads.take(source.upload), to);
    const { size } = statSync(to);
    if (size > maxBytes)
      throw new QemuError('IMAGE_REFUSED', `the file has ${size} bytes, and ${maxBytes} are allowed for it`);
    return size;
  }

  async #convert(
    { from, format, to, virtualBytes }: { from: string; format: string; to: string; virtualBytes: number },
    { signal, onProgress }: ImageWork,
  ): Promise<void> {
    // Tables take a thousandth; a disk that is larger than a file may be must be sparse enough.
    const { sandboxUid: uid, maxFileBytes = defaultMaxFileBytes } = this.#options;
    const fileBytes = Math.min(maxFileBytes, Math.ceil(virtualBytes * 1.01) + 64 * 1024 * 1024);
    const command = ['qemu-img', 'convert', '-p', '-f', format, '-O', 'qcow2', from, to] as const;
    onProgress?.('converting', 0);
    await runSandboxed('converting the image', command, {
      uid,
      fileBytes,
      cpuSeconds,
      signal,
      onOutput: (text) => {
        const [, percent] = /\((\d+\.\d+)\/100%\)\s*$/.exec(text) ?? [];
        if (percent !== undefined) onProgress?.('converting', Number(percent) / 100);
      },
    });
  }

  async #stage<T>(act: (stage: string) => Promise<T>): Promise<T> {
    const stage = mkdtempSync(join(this.#directory, 'new-'));
    try {
      return await act(stage);
    } catch (error) {
      const { code } = error as { readonly code?: string };
      if (code === 'ENOSPC' || code === 'EDQUOT' || code === 'DISK_FULL')
        throw new QemuError('DISK_FULL', `no room for the image in "${this.#directory}"; free space there`, error);
      throw error;
    } finally {
      rmSync(stage, { recursive: true, force: true });
    }
  }

  /** Owned by us, read-only, readable by QEMUs. Nobody of the sandbox is alive who could still have it open. */
  protect(path: string): void {
    const { gid } = this.#options;
    const fd = openSync(path, constants.O_RDONLY | constants.O_NOFOLLOW);
    const { nlink } = fstatSync(fd);
    if (nlink !== 1) {
      closeSync(fd);
      throw new QemuError('IMAGE_FAILED', 'taking the image failed: the file has another name too');
    }
    fsyncSync(fd);
    closeSync(fd);
    if (process.getuid?.() === 0) chownSync(path, 0, gid ?? 0);
    chmodSync(path, gid === undefined ? 0o400 : 0o440);
  }

  /** Gives an image its place; one that is stored already stays as it is. */
  #publish<T extends StoredImage>(from: string, image: T, isCopy = false): T {
    const record = this.#recordOf(image.digest);
    if (existsSync(record)) {
      try {
        return this.open(image.digest) as T;
      } catch {
        this.#removeFiles(image.digest);
      }
    }
    rmSync(image.path, { recursive: true, force: true });
    renameSync(from, image.path);
    this.#writeRecord({ ...image, stamp: stampOf(image), ...(isCopy && { isCopy }) });
    return image;
  }

  #pathOf(digest: string, suffix: string): string {
    if (!/^sha256:[0-9a-f]{64}$/.test(digest))
      throw new QemuError(
        'IMAGE_MISSING',
        `"${digest}" is no digest of an image, which is "sha256:" and 64 hex digits`,
      );
    return join(this.#directory, `${digest.replace(':', '-')}${suffix}`);
  }

  #recordOf(digest: string): string {
    return this.#pathOf(digest, '.json');
  }
}

/** What shows that a file is not the one that was stored, without reading all of it. */
function stampOf(image: StoredImage): string {
  const files =
    image.kind === 'disk' ? [image.path] : [image.kernel, ...(image.initrd === undefined ? [] : [image.initrd])];
  return files
    .map((file) => {
      const { size, mtimeNs, ino } = statSync(file, { bigint: true });
      return `${size}/${mtimeNs}/${ino}`;
    })
    .join(' ');
}

function rawSize(file: string): number {
  const { size } = statSync(file);
  if (size === 0 || size % 512 !== 0)
    throw new QemuError('IMAGE_REFUSED', `the image is no raw disk: its ${size} bytes are no multiple of 512`);
  return size;
}

/** Copies a regular file of at most `maxBytes`; returns its size. Follows symbolic links of the caller's path. */
async function copyFile(
  from: string,
  to: string,
  maxBytes: number,
  { signal, onProgress }: ImageWork,
): Promise<number> {
  let fd: number;
  try {
    fd = openSync(from, constants.O_RDONLY | constants.O_NONBLOCK);
  } catch (error) {
    throw new QemuError('IMAGE_REFUSED', `the image "${from}" cannot be opened: ${messageOf(error)}`, error);
  }
  const stat = fstatSync(fd);
  if (!stat.isFile() || stat.size > maxBytes) {
    closeSync(fd);
    throw new QemuError(
      'IMAGE_REFUSED',
      stat.isFile()
        ? `the image "${from}" has ${stat.size} bytes, and ${maxBytes} are allowed`
        : `the image "${from}" is no regular file`,
    );
  }
  let done = 0;
  const meter = new Transform({
    transform(chunk: Buffer, _encoding, next) {
      done += chunk.length;
      if (done > maxBytes) next(new QemuError('IMAGE_REFUSED', `the image "${from}" grew beyond ${maxBytes} bytes`));
      else {
        onProgress?.('copying', Math.min(1, done / stat.size));
        next(null, chunk);
      }
    },
  });
  const read = createReadStream('', { fd, highWaterMark: 1024 * 1024 });
  await pipeline(read, meter, createWriteStream(to, { flags: 'wx', mode: 0o600 }), { signal });
  return done;
}

async function digestOf(file: string, { signal, onProgress }: ImageWork): Promise<string> {
  const hash = createHash('sha256');
  const { size } = statSync(file);
  let done = 0;
  for await (const chunk of createReadStream(file, { highWaterMark: 1024 * 1024, signal })) {
    hash.update(chunk as Buffer);
    done += (chunk as Buffer).length;
    onProgress?.('digesting', done / size);
  }
  return `sha256:${hash.digest('hex')}`;
}
