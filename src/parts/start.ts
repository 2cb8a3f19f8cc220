/**
 * Starts parts of ours: from a checkout the pinned Node with a source file, from the one-file executable the executable
 * itself with the part's name. Nothing else knows which of the two it runs in.
 */
import { getAsset, isSea } from 'node:sea';
import { fileURLToPath } from 'node:url';
import { Worker, type WorkerOptions } from 'node:worker_threads';
import { type ProcessPartName, processParts, type ThreadPartName, threadParts } from './parts.ts';

/** Before the name of a part, as the first argument of the executable. */
export const partPrefix = 'part:';

const checkout = new URL('../../', import.meta.url);
const sourceUrl = (file: string, root = checkout): URL => new URL(`src/${file}`, root);

/** A file of the checkout, given from its root; undefined in the executable, which has none. */
export const checkoutFile = (file: string): string | undefined =>
  isSea() ? undefined : fileURLToPath(new URL(file, checkout));

/**
 * Program and arguments that start a part as a process; what the part itself is told comes after them. `root`: of a copy
 * (`copyPart`), where its user cannot get to the checkout.
 */
export const commandOf = (part: ProcessPartName, root?: URL): readonly [string, ...string[]] => {
  const { file, flags } = processParts[part];
  return isSea()
    ? [process.execPath, `--node-options=${flags.join(' ')}`, `${partPrefix}${part}`]
    : [process.execPath, '--disable-warning=ExperimentalWarning', ...flags, fileURLToPath(sourceUrl(file, root))];
};

/**
 * The environment of a part, the whole of it: ours may hold secrets. From a checkout it names the compiled sources, types
 * stripped: without them every process loads a compiler (28 MB). Node goes on without them where they can't be written.
 */
export const partEnvironment = (root = checkout): Readonly<Record<string, string>> =>
  isSea() ? {} : { NODE_COMPILE_CACHE: fileURLToPath(new URL('.cache/compile', root)) };

/** Starts a part as a thread of this process. */
export const startThread = (part: ThreadPartName, options: Omit<WorkerOptions, 'eval'>): Worker =>
  isSea()
    ? new Worker(`${getAsset('boot.js', 'utf8')}\nboot(${JSON.stringify(part)});`, { ...options, eval: true })
    : new Worker(sourceUrl(threadParts[part].file), options);
