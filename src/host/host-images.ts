/** The images of a host, as managers ask for them: bytes by digest, and their names. */
import { type ImageSource, type ImageStore, type ImageWork, QemuError, type StoredImage } from '../qemu/index.ts';
import type { ImageFacts, ImageFile, ImageRef, ImageRequest, IncomingUpload, Progress } from '../records/index.ts';
import type { Store } from '../store/index.ts';
import { HostRefusal } from './host-error.ts';
import { ImageNames } from './image-names.ts';
import { recipeOf } from './recipe.ts';

interface HostImagesOptions {
  readonly region: Store;
  readonly images: ImageStore;
  /** Where the names of its images are in the store. */
  readonly prefix: string | undefined;
  /** Programs that build images, by the name that they are asked for by. */
  readonly recipes: Readonly<Record<string, readonly [string, ...string[]]>>;
}

/** Refusals are `HostRefusal`. */
export class HostImages {
  readonly #images: ImageStore;
  readonly #names: ImageNames;
  readonly #recipes: HostImagesOptions['recipes'];

  constructor({ region, images, prefix, recipes }: HostImagesOptions) {
    this.#images = images;
    this.#names = new ImageNames(region, images, prefix);
    this.#recipes = recipes;
  }

  /** What the daemon before left and nobody wants goes. StoreError. */
  collect(): Promise<void> {
    return this.#names.collect();
  }

  async add(
    request: ImageRequest,
    {
      signal,
      progress,
    }: { readonly signal?: AbortSignal | undefined; readonly progress: (progress: Progress) => void },
  ): Promise<ImageFacts> {
    const { source } = request;
    const work = {
      signal,
      onProgress: (step: string, done: number): void => progress({ step, done, total: 1 }),
    };
    try {
      const image = await this.#names.add(request, () => this.#take(source, work));
      return {
        digest: image.digest,
        sizeBytes: image.fileBytes,
        virtualSizeBytes: image.kind === 'disk' ? image.virtualBytes : image.fileBytes,
      };
    } catch (error) {
      throw imageRefusal(error);
    }
  }

  #take(source: ImageRequest['source'], work: ImageWork): Promise<StoredImage> {
    switch (source.kind) {
      case 'disk':
        return this.#images.addDisk({ file: sourceOf(source.disk), format: source.format }, work);
      case 'kernel': {
        const { kernel, initrd, commandLine } = source;
        return this.#images.addKernel(
          { kernel: sourceOf(kernel), initrd: initrd && sourceOf(initrd), commandLine },
          work,
        );
      }
      case 'recipe':
        return this.#images.build(recipeOf(this.#recipes, source.recipe), work);
    }
  }

  openUpload(sizeBytes: number): IncomingUpload {
    try {
      const file = this.#images.openUpload(sizeBytes);
      return {
        receive: async (chunks, { signal } = {}) => {
          try {
            return await file.receive(chunks, signal);
          } catch (error) {
            throw imageRefusal(error);
          }
        },
        [Symbol.asyncDispose]: () => file[Symbol.asyncDispose](),
      };
    } catch (error) {
      if (error instanceof QemuError && error.code === 'IMAGE_REFUSED')
        throw new HostRefusal('HOST_TOO_LARGE', error.message, { cause: error });
      throw imageRefusal(error);
    }
  }

  remove(image: ImageRef): Promise<void> {
    return this.#names.remove(image);
  }
}

const sourceOf = (file: ImageFile): ImageSource => (file.from === 'host' ? file.path : { upload: file.id });

const imageRefusal = (error: unknown): unknown => {
  if (!(error instanceof QemuError)) return error;
  const codes: Partial<Record<QemuError['code'], HostRefusal['code']>> = {
    IMAGE_REFUSED: 'HOST_INVALID',
    IMAGE_MISSING: 'HOST_INVALID',
    DISK_FULL: 'HOST_FULL',
  };
  return new HostRefusal(codes[error.code] ?? 'HOST_UNAVAILABLE', error.message, { cause: error });
};
