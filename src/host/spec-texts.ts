/** Reads and writes the texts of specs: what is long in a thread of its own, so that the daemon answers others meanwhile. */
import { once } from 'node:events';
import { startThread } from '../parts/index.ts';
import type { ExportedTree } from './export-yaml.ts';
import type { LoadedPolicy, LoadedSpec } from './spec-file.ts';
import { doSpecTask, type SpecResults, type SpecTask } from './spec-task.ts';

/** A text or values of so many bytes, and so many entries, take a few milliseconds; a thread takes a hundred to start. */
const shortBytes = 64 * 1024;
const shortEntries = 64;

/** One long task is done at a time: each takes the memory of the text many times over. */
export class SpecTexts {
  #last: Promise<unknown> = Promise.resolve();

  /** As `parseSpec`. */
  readSpec(text: string): Promise<LoadedSpec> {
    return this.#do({ kind: 'spec', text });
  }

  /** As `parsePolicy`. */
  readPolicy(text: string): Promise<LoadedPolicy> {
    return this.#do({ kind: 'policy', text });
  }

  /** As `exportYaml`. */
  write(tree: ExportedTree): Promise<string> {
    return this.#do({ kind: 'export', tree });
  }

  async #do<T extends SpecTask>(task: T): Promise<SpecResults[T['kind']]> {
    if (isShort(task)) return doSpecTask(task) as SpecResults[T['kind']];
    const before = this.#last;
    const { promise, resolve } = Promise.withResolvers<void>();
    this.#last = promise;
    await before;
    try {
      return (await inThread(task)) as SpecResults[T['kind']];
    } finally {
      resolve();
    }
  }
}

const isShort = (task: SpecTask): boolean => {
  if (task.kind !== 'export') return task.text.length <= shortBytes;
  const { entries } = task.tree;
  if (entries.length > shortEntries) return false;
  return entries.reduce((sum, entry) => sum + (entry.kind === 'file' ? entry.bytes.length : 0), 0) <= shortBytes;
};

const inThread = async (task: SpecTask): Promise<unknown> => {
  const thread = startThread('spec-thread', { workerData: task });
  try {
    const [result] = (await once(thread, 'message')) as [unknown];
    return result;
  } finally {
    await thread.terminate();
  }
};
