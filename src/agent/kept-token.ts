/** The token in memory that outlives this process, where systemd keeps it: a successor within the boot must not claim another. */
import { readSync, writeSync } from 'node:fs';
import { memfd } from '../sys/index.ts';
import type { KeptToken } from './boot-token.ts';
import type { ServiceManager } from './service-manager.ts';

const NAME = 'porthole-token';
/** A page: one write of it is seen whole or not at all. */
const FILE_BYTES = 4096;

export class TokenFile {
  readonly #fd: number;

  constructor(manager: ServiceManager) {
    const left = manager.kept.get(NAME);
    this.#fd = left ?? memfd(NAME, FILE_BYTES);
    if (left === undefined && this.#fd >= 0) manager.keep(NAME, this.#fd);
  }

  /** What a predecessor had, or undefined. */
  load(): KeptToken | undefined {
    if (this.#fd < 0) return undefined;
    const bytes = Buffer.alloc(FILE_BYTES);
    const length = readSync(this.#fd, bytes, 0, FILE_BYTES, 0);
    const text = bytes.toString('utf8', 0, length).replace(/\0.*$/s, '');
    try {
      const { nonce, token } = JSON.parse(text) as { readonly nonce?: unknown; readonly token?: unknown };
      return typeof nonce === 'string' && typeof token === 'string' ? { nonce, token } : undefined;
    } catch {
      return undefined;
    }
  }

  save(kept: KeptToken): void {
    if (this.#fd < 0) return;
    const bytes = Buffer.alloc(FILE_BYTES);
    bytes.write(JSON.stringify(kept));
    writeSync(this.#fd, bytes, 0, FILE_BYTES, 0);
  }
}
