/**
 * A device that ends between any two of its deeds: arrays that count the stores in them, and a keeper that outlives it. At the
 * chosen point everything that the device would still do is left undone.
 */
import assert from 'node:assert/strict';
import { close, duplicate, receive, send } from '../../src/sys/index.ts';

/** Thrown where a process would be gone. */
export class Killed extends Error {}

/** Counts what a device does that others see, and ends it. */
export class Points {
  reached = 0;
  isDead = false;
  #killAt: number;

  constructor(killAt: number) {
    this.#killAt = killAt;
  }

  /** It is not ended any more. */
  spare(): void {
    this.#killAt = Number.POSITIVE_INFINITY;
  }

  /** Between two of its deeds. */
  pass(): void {
    if (this.isDead || ++this.reached === this.#killAt) {
      this.isDead = true;
      throw new Killed('the process is gone');
    }
  }
}

/** The arrays as they are, but for a pass before and after each store. */
export function counted<T extends object>(array: T, points: Points): T {
  return new Proxy(array, {
    get: (target, key) => {
      const value: unknown = Reflect.get(target, key, target);
      if (typeof value !== 'function') return value;
      return (...args: unknown[]) => {
        if (key === 'subarray') return counted((value as (...a: unknown[]) => object).apply(target, args), points);
        if (key !== 'set' && key !== 'fill') return (value as (...a: unknown[]) => unknown).apply(target, args);
        points.pass();
        const result: unknown = (value as (...a: unknown[]) => unknown).apply(target, args);
        points.pass();
        return result;
      };
    },
    set: (target, key, value) => {
      points.pass();
      Reflect.set(target, key, value, target);
      points.pass();
      return true;
    },
  });
}

/** What the keeper keeps. */
export class FakeKeeper {
  readonly fds = new Map<string, number>();
  done = 0;
  readonly #controlFd: () => number;

  constructor(controlFd: () => number) {
    this.#controlFd = controlFd;
  }

  /** As one life of the device reaches it. */
  seenBy(points: Points) {
    return {
      put: (name: string, fd: number): boolean => {
        points.pass();
        this.#forget(name);
        this.fds.set(name, duplicate(fd));
        points.pass();
        return true;
      },
      drop: (name: string): void => {
        points.pass();
        this.#forget(name);
        points.pass();
      },
      finish: (_name: string, number: number, reply: Uint8Array, take: number): boolean => {
        points.pass();
        if (number > this.done) {
          this.done = number;
          if (reply.length > 0) assert.equal(send(this.#controlFd(), reply), reply.length);
          if (take > 0) assert.equal(receive(this.#controlFd(), new Uint8Array(take), take), take);
        }
        points.pass();
        return true;
      },
    };
  }

  #forget(name: string): void {
    const fd = this.fds.get(name);
    if (fd !== undefined) close(fd);
    this.fds.delete(name);
  }

  close(): void {
    for (const fd of this.fds.values()) close(fd);
  }
}
