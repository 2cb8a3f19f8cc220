/** Programs that build images. They belong to this machine, as the daemon does, and are not confined. */
import { execFile } from 'node:child_process';
import { mkdirSync, readFileSync } from 'node:fs';
import { basename, join } from 'node:path';
import { promisify } from 'node:util';
import { z } from 'zod';
import { printable } from '../wire/index.ts';
import { messageOf, QemuError } from './error.ts';
import type { ImageWork } from './images.ts';

const fileName = z.string().refine((name) => name !== '' && name === basename(name) && !name.startsWith('.'));

const description = z.discriminatedUnion('kind', [
  z.strictObject({ kind: z.literal('kernel'), kernel: fileName, initrd: fileName.optional(), commandLine: z.string() }),
  z.strictObject({ kind: z.literal('disk'), disk: fileName, format: z.enum(['qcow2', 'raw']) }),
]);

export type BuiltImage =
  | { readonly kind: 'kernel'; readonly kernel: string; readonly initrd?: string; readonly commandLine: string }
  | { readonly kind: 'disk'; readonly file: string; readonly format: 'qcow2' | 'raw' };

const wordsKept = 2_000;

/** Runs `recipe… DIRECTORY` in a new directory below `stage`, and returns what it built there, with absolute paths. */
export async function runRecipe(
  recipe: readonly [string, ...string[]],
  stage: string,
  { signal, onProgress }: ImageWork,
): Promise<BuiltImage> {
  const directory = join(stage, 'built');
  mkdirSync(directory);
  onProgress?.('building', 0);
  const [program, ...args] = recipe;
  try {
    await promisify(execFile)(program, [...args, directory], { signal, maxBuffer: 64 * 1024 * 1024 });
  } catch (error) {
    signal?.throwIfAborted();
    const { stderr = '' } = error as { readonly stderr?: string };
    const words = stderr.trim().slice(-wordsKept).split('\n').map(printable).join('; ');
    throw new QemuError('IMAGE_FAILED', `building the image failed: ${words || messageOf(error)}`, error);
  }
  onProgress?.('building', 1);
  const parsed = description.safeParse(JSON.parse(readFileSync(join(directory, 'image.json'), 'utf8')));
  if (!parsed.success)
    throw new QemuError('IMAGE_FAILED', `the recipe's image.json is wrong: ${z.prettifyError(parsed.error)}`);
  const built = parsed.data;
  if (built.kind === 'disk') return { kind: 'disk', file: join(directory, built.disk), format: built.format };
  return {
    kind: 'kernel',
    kernel: join(directory, built.kernel),
    commandLine: built.commandLine,
    ...(built.initrd !== undefined && { initrd: join(directory, built.initrd) }),
  };
}
