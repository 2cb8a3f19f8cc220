/**
 * Which bytes an image of a name is here: `hostimage/NAME/VERSION` is their digest. Two names may have the same. Bytes that were
 * stored when the daemon was killed and got no name, or had lost their last one, go at the next start.
 */
import type { ImageStore } from '../qemu/index.ts';
import type { ImageRef } from '../records/index.ts';
import { prefixRange, type Store } from '../store/index.ts';

const textOf = (value: Uint8Array): string => new TextDecoder().decode(value);

/** The bytes, where they are kept, and the note of which may have no name. */
type ImageBytes = Pick<ImageStore, 'remove' | 'beUnnamed' | 'beNamed' | 'unnamed'>;

export class ImageNames {
  readonly #region: Store;
  readonly #images: ImageBytes;
  readonly #prefix: string;
  /** Images that are stored and may have no name yet. */
  #adding = 0;
  /** How often something was added. */
  #begun = 0;
  /** Digests that got a name or not, or lost one. */
  readonly #suspects = new Set<string>();

  /** `prefix`: of its keys, for there may be several hosts in one store. */
  constructor(region: Store, images: ImageBytes, prefix = 'hostimage/') {
    this.#region = region;
    this.#images = images;
    this.#prefix = prefix;
  }

  /** What the daemon before left without a name goes. StoreError; then it is looked at with the next image that is added. */
  async collect(): Promise<void> {
    for (const digest of this.#images.unnamed()) this.#suspects.add(digest);
    await this.#removeUnnamed();
  }

  /** Gives a name to what `take` stores. Rejects with what `take` or the store throws. */
  async add<T extends { readonly digest: string }>(image: ImageRef, take: () => Promise<T>): Promise<T> {
    this.#adding++;
    this.#begun++;
    try {
      const taken = await take();
      this.#suspects.add(taken.digest);
      const value = new TextEncoder().encode(taken.digest);
      await this.#region.commit({ operations: [{ type: 'put', key: this.#keyOf(image), value }] });
      return taken;
    } finally {
      this.#adding--;
      // What could not be looked at is looked at after the next one.
      await this.#removeUnnamed().catch(() => {});
    }
  }

  /** Bytes that no other name has go as well, at once or when nothing is added any more. Nothing happens without the name. */
  async remove(image: ImageRef): Promise<void> {
    const key = this.#keyOf(image);
    const kept = await this.#region.get(key);
    if (kept === undefined) return;
    this.#images.beUnnamed(textOf(kept.value));
    await this.#region.commit({ operations: [{ type: 'delete', key }] });
    this.#suspects.add(textOf(kept.value));
    await this.#removeUnnamed();
  }

  #keyOf({ name, version }: ImageRef): string {
    return `${this.#prefix}${name}/${version}`;
  }

  async #removeUnnamed(): Promise<void> {
    if (this.#suspects.size === 0) return;
    const begun = this.#begun;
    const named = new Set<string>();
    const range = prefixRange(this.#prefix);
    let revision: number | undefined;
    for (let start: typeof range.start | Uint8Array | undefined = range.start; start !== undefined; ) {
      const page = await this.#region.range({ ...range, start }, { revision });
      for (const { value } of page.entries) named.add(textOf(value));
      ({ revision } = page);
      start = page.next;
    }
    // Whoever added meanwhile may have found the same bytes there; when that is over, it comes here too.
    if (this.#adding > 0 || begun !== this.#begun) return;
    for (const digest of this.#suspects) {
      this.#suspects.delete(digest);
      if (named.has(digest)) this.#images.beNamed(digest);
      else this.#images.remove(digest);
    }
  }
}
