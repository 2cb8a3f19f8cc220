/** The commands of a chapter of the documentation, as they stand there. */
import { readFileSync } from 'node:fs';
import path from 'node:path';

export interface Block {
  /** Of the section that it is in. */
  readonly title: string;
  /** Names of the machines on which it is to be run, from its first line: `# on A, B: what for`. */
  readonly on: readonly string[];
  readonly what: string;
  readonly text: string;
}

const file = path.join(import.meta.dirname, '../../docs/operations.md');

/** Those blocks of a chapter (`## TITLE`) that say where they are to be run. */
export const blocksOf = (chapter: string): Block[] => {
  const [, text = ''] = readFileSync(file, 'utf8').split(new RegExp(`^## ${chapter}$`, 'm'));
  const [within = ''] = text.split(/^## /m);
  return within.split(/^### /m).flatMap((section) => {
    const title = section.slice(0, section.indexOf('\n'));
    return [...section.matchAll(/^```\n# on ([^:\n]+)(?:: (.*))?\n([^]*?)^```$/gm)].map(
      ([, on, what = '', commands]) => ({
        title,
        on: on!.split(', '),
        what,
        text: commands!,
      }),
    );
  });
};
