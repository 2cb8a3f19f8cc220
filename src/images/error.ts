import type { HostErrorCode } from '../records/index.ts';

/** Why something is not done with an image. The message says what was tried and what to do. */
export class ImageRefusal extends Error {
  readonly code: HostErrorCode;

  constructor(code: HostErrorCode, message: string, cause?: unknown) {
    super(message, cause === undefined ? undefined : { cause });
    this.name = 'ImageRefusal';
    this.code = code;
  }
}
