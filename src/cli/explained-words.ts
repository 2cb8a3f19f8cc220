/** What the API says of a path for one caller, in the words of `explain-command.ts`. */

import { printable } from '../wire/index.ts';
import { modeLetters } from './mode-letters.ts';
import type { Explained } from './shapes.ts';

interface Asker {
  readonly uid: number;
  readonly gid: number;
  readonly groups: readonly number[] | undefined;
}

export const explainedWords = (told: Explained, { uid, gid, groups }: Asker): string => {
  const { type, shownMode, stoppedAt, keys } = told;
  const letter = { directory: 'd', file: '-', symlink: 'l' }[type];
  const path = printable(told.path);
  const lines = [
    `${letter}${modeLetters(Number.parseInt(shownMode, 8))} ${told.uid} ${told.gid} ${path}`,
    '',
    `uid ${uid}, gid ${gid}${groups === undefined ? '' : `, groups ${groups.join(' ')}`}, by virtiofs`,
  ];
  for (const what of type === 'directory' ? (['read', 'write', 'search'] as const) : (['read', 'write'] as const)) {
    const { allowed, because } = told[what];
    const isCut = allowed && stoppedAt !== undefined;
    const why = isCut ? `no way to it: ${printable(stoppedAt)} may not be searched` : because;
    lines.push(`  ${what.padEnd(6)} ${allowed && !isCut ? 'allowed' : 'denied '}  ${path}  (${why})`);
  }
  if (told.hidden) lines.push('  hidden: for this caller it is not there (ENOENT, not listed)');
  lines.push('', keys.length === 0 ? 'no rule covers it: the defaults hold' : 'from the rules:');
  for (const { key, value, rule } of keys) lines.push(`  ${key}: ${value}  (${rule})`);
  return `${lines.join('\n')}\n`;
};
