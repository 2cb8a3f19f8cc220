/**
 * How a host's audit log is chained: each line has a hash over the line before it and its own content, and a file beside the
 * segments notes where the chain begins, as what was before is deleted, and how far it was on the disk.
 */
import { hash } from 'node:crypto';
import { closeSync, fstatSync, fsyncSync, openSync, readFileSync, readSync, renameSync, writeSync } from 'node:fs';
import path from 'node:path';

/** What a line says beside its record. */
export interface LineHead {
  /** Counts all records of this host, from 1. */
  readonly sequence: number;
  /** When it was kept, milliseconds since the epoch; never less than of the line before. 0 of lines that do not say so. */
  readonly atMs: number;
  /** The VM's boot that it is of, where one is known. */
  readonly bootId?: string | undefined;
  /** Of the VM. Undefined in lines from before it was noted: then only who sees all of a host is shown it. */
  readonly account?: string | undefined;
}

/** A record of the log, with the hash up to there. */
export interface Link {
  readonly sequence: number;
  readonly chain: string;
}

/** Before the first record. */
export const firstLink: Link = { sequence: 0, chain: '0'.repeat(64) };

/** Lines from before they said when they were kept are chained as they were then. A record begins with "{", no other part does. */
export const chainOf = (before: string, { sequence, atMs, bootId, account }: LineHead, json: string): string => {
  const more = atMs === 0 ? [] : [atMs, account ?? ''];
  return hash('sha256', [before, sequence, bootId ?? '', ...more, json].join('\n'));
};

/** With the line feed at its end. */
export const asLine = ({ sequence, atMs, bootId, account }: LineHead, chain: string, json: string): string => {
  const at = atMs === 0 ? '' : `"at":${atMs},`;
  const boot = bootId === undefined ? '' : `"bootId":${JSON.stringify(bootId)},`;
  const of = account === undefined ? '' : `"account":${JSON.stringify(account)},`;
  return `{"sequence":${sequence},"chain":"${chain}",${at}${boot}${of}"record":${json}}\n`;
};

/** Links that the log must still have: the last that was deleted for its age, and the newest that was on the disk. */
export interface ChainEnds {
  readonly deleted: Link | undefined;
  readonly newest: Link;
}

const endsName = 'ends.json';
/** Each note is as long as all others, and less than a sector. */
const endsBytes = 512;

const isLink = (value: unknown): value is Link => {
  const { sequence, chain } = (value ?? {}) as Partial<Link>;
  return Number.isSafeInteger(sequence) && typeof chain === 'string' && /^[0-9a-f]{64}$/.test(chain);
};

/** Undefined where they were never noted, or nothing can be made of the note. */
export const readEnds = (directory: string): ChainEnds | undefined => {
  try {
    const { deleted, newest } = JSON.parse(readFileSync(path.join(directory, endsName), 'utf8')) as Partial<ChainEnds>;
    return isLink(newest) ? { deleted: isLink(deleted) ? deleted : undefined, newest } : undefined;
  } catch {
    return undefined;
  }
};

/** Throws what the disk says. `isLasting`: it is on the disk when this returns. */
export const noteEnds = (directory: string, ends: ChainEnds, isLasting: boolean): void => {
  const file = path.join(directory, endsName);
  const text = `${JSON.stringify(ends).padEnd(endsBytes - 1)}\n`;
  try {
    writeNote(`${file}.new`, 'w', text, isLasting);
    renameSync(`${file}.new`, file);
  } catch (error) {
    if (!['ENOSPC', 'EDQUOT'].includes((error as NodeJS.ErrnoException).code ?? '')) throw error;
    // Old segments can go only when this is noted: the place that the last note has is enough for it.
    writeNote(file, 'r+', text, isLasting);
  }
};

const writeNote = (file: string, flags: 'w' | 'r+', text: string, isLasting: boolean): void => {
  const fd = openSync(file, flags, 0o600);
  try {
    writeSync(fd, text);
    if (isLasting) fsyncSync(fd);
  } finally {
    closeSync(fd);
  }
};

/** More than a line can have. */
const tailBytes = 256 * 1024;

/** The last whole line of a segment, without its end. Throws what the disk says. */
export const lastLineOf = (file: string): string | undefined => {
  const fd = openSync(file, 'r');
  try {
    const { size } = fstatSync(fd);
    const bytes = Buffer.alloc(Math.min(size, tailBytes));
    readSync(fd, bytes, 0, bytes.length, size - bytes.length);
    return bytes
      .toString()
      .split('\n')
      .slice(0, -1)
      .findLast((line) => line !== '');
  } finally {
    closeSync(fd);
  }
};
