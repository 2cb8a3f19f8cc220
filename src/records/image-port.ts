/**
 * The images of a region, as managers ask for them: whoever keeps them is in the manager's process, or a registry. Hosts fetch
 * them by digest through `ImageBytes`. Errors have the codes of `HostErrorCode`.
 */
import type { CallOptions, ProgressOptions } from './host-port.ts';

export interface ImageRef {
  readonly name: string;
  readonly version: string;
}

export interface ImageRequest extends ImageRef {
  readonly source:
    | { readonly kind: 'disk'; readonly disk: ImageFile; readonly format: 'qcow2' | 'raw' }
    | {
        readonly kind: 'kernel';
        readonly kernel: ImageFile;
        readonly initrd?: ImageFile | undefined;
        readonly commandLine: string;
      }
    | { readonly kind: 'recipe'; readonly recipe: string };
}

export type ImageFile =
  /** A file of the manager's machine. Only asked for on behalf of who could read it anyway. */
  | { readonly from: 'host'; readonly path: string }
  /** What was given to `upload`. HOST_INVALID when it is not there, or not any more. */
  | { readonly from: 'upload'; readonly id: string };

/** Bytes that are kept for a while, until an image is made from them. */
export interface Upload {
  /** Not to be guessed: whoever knows it may use it, once. */
  readonly id: string;
  readonly sizeBytes: number;
  /** `sha256:` and 64 hex digits. */
  readonly digest: string;
  readonly expiresAtMs: number;
}

/** What is there of a file that comes in pieces. */
export interface PartialUpload {
  readonly id: string;
  readonly receivedBytes: number;
  readonly expiresAtMs: number;
}

/** Bytes of a file, from `offset` on. Its id is made by who sends it, and not to be guessed. */
export interface UploadPiece {
  /** Whose it is until it is whole: another's of that id is another file. */
  readonly account: string;
  readonly id: string;
  /** Of the whole. */
  readonly sizeBytes: number;
  readonly offset: number;
}

export interface IncomingUpload extends AsyncDisposable {
  /** Takes the bytes. HOST_INVALID when they are not as many as was said, HOST_FULL; then nothing is kept. */
  receive(chunks: AsyncIterable<Uint8Array>, options?: CallOptions): Promise<Upload>;
}

export interface ImageFacts {
  /** `sha256:` and 64 hex digits, of its manifest, which names the digests of all else. */
  readonly digest: string;
  readonly sizeBytes: number;
  /** What a disk made from it has at least. */
  readonly virtualSizeBytes: number;
}

/** A version of an image, and its bytes. */
export interface ImageDigest extends ImageRef {
  readonly digest: string;
}

export interface ImageBytes {
  /**
   * A blob of that image from `offset` on: its manifest, whose digest is the image's, or what that names. HOST_NOT_FOUND,
   * HOST_UNAVAILABLE.
   */
  blob(image: ImageDigest, digest: string, options: BlobOptions): Promise<BlobBytes>;
}

export interface BlobOptions extends CallOptions {
  readonly offset: number;
}

export interface BlobBytes {
  /** Of the whole blob. */
  readonly sizeBytes: number;
  readonly bytes: AsyncIterable<Uint8Array>;
}

export interface ImagePort extends ImageBytes {
  /**
   * Makes room for a file that an image is to be made from. HOST_TOO_LARGE, HOST_FULL, HOST_UNAVAILABLE (too many, most often
   * of that account).
   * Whoever was given it receives or disposes of it.
   */
  openUpload(account: string, sizeBytes: number, options?: CallOptions): Promise<IncomingUpload>;
  /**
   * Takes bytes of a file as they come, and keeps what came when they break off. HOST_WRONG_STATE when others are there than
   * those before the offset, and as `openUpload`; HOST_INVALID when more came than was said.
   */
  resumeUpload(
    piece: UploadPiece,
    chunks: AsyncIterable<Uint8Array>,
    options?: CallOptions,
  ): Promise<Upload | PartialUpload>;
  /** HOST_NOT_FOUND. */
  findUpload(account: string, id: string): Promise<Upload | PartialUpload>;
  /** Checks, converts and keeps an image. HOST_WRONG_STATE: the name has another. Tells `progress` at most a few times a second. */
  addImage(request: ImageRequest, options: ProgressOptions): Promise<ImageFacts>;
  /**
   * Keeps an image that is elsewhere, verified; one that broke off is gone on with. HOST_INVALID, HOST_FULL, HOST_WRONG_STATE
   * (the name has another), what the source throws but HOST_UNAVAILABLE: then it is asked again.
   */
  copyImage(image: ImageDigest, from: ImageBytes, options: ProgressOptions): Promise<void>;
  /** The digest of what it has under a name; undefined where it has nothing. */
  findImage(image: ImageRef): Promise<string | undefined>;
  /** Forgets the bytes of an image that no VM uses. Nothing happens when they are gone already, or the name has others by now. */
  removeImage(image: ImageDigest, options?: CallOptions): Promise<void>;
  /** Takes up what was kept by the host before images were kept here; undefined where it is not there. */
  adoptImage(image: ImageDigest): Promise<ImageFacts | undefined>;
}
