/**
 * The console log of one VM: every byte has an offset, counted since the VM was made. The file is kept in two pieces, each
 * named after the offset of its first byte, so that at most twice `pieceBytes` and at least the last `pieceBytes` are there.
 */
import {
  closeSync,
  constants,
  copyFileSync,
  fstatSync,
  openSync,
  readdirSync,
  readSync,
  renameSync,
  rmSync,
  writeSync,
} from 'node:fs';
import { basename, dirname, join } from 'node:path';

const offsetDigits = 16;
const flags = constants.O_NOFOLLOW | constants.O_APPEND | constants.O_CREAT | constants.O_WRONLY;

interface Piece {
  readonly file: string;
  readonly start: number;
}

/** The pieces of a log, oldest first. */
function piecesOf(path: string): Piece[] {
  const prefix = `${basename(path)}.`;
  let names: string[];
  try {
    names = readdirSync(dirname(path));
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code === 'ENOENT') return [];
    throw error;
  }
  return names
    .filter((name) => name.startsWith(prefix) && /^\d+$/.test(name.slice(prefix.length)))
    .map((name) => ({ file: join(dirname(path), name), start: Number(name.slice(prefix.length)) }))
    .toSorted((a, b) => a.start - b.start);
}

const pieceName = (path: string, start: number): string => `${path}.${String(start).padStart(offsetDigits, '0')}`;

/** Appends. One writer at a time; it goes on where an earlier one ended. Throws what open(2) fails with. */
export class ConsoleLog {
  readonly #path: string;
  readonly #pieceBytes: number;
  #fd: number;
  #start: number;
  #size: number;

  constructor(path: string, pieceBytes: number) {
    this.#path = path;
    this.#pieceBytes = pieceBytes;
    const last = piecesOf(path).at(-1);
    this.#start = last?.start ?? 0;
    this.#fd = openSync(pieceName(path, this.#start), flags, 0o600);
    this.#size = fstatSync(this.#fd).size;
  }

  /** Appends all of it. What the file system has no room for is lost: a console is no reason to stop a machine. */
  append(bytes: Uint8Array): void {
    for (let at = 0; at < bytes.length; ) {
      if (this.#size >= this.#pieceBytes) this.#nextPiece();
      const piece = bytes.subarray(at, at + this.#pieceBytes - this.#size);
      try {
        this.#size += writeSync(this.#fd, piece);
      } catch (error) {
        const { code } = error as NodeJS.ErrnoException;
        if (code !== 'ENOSPC' && code !== 'EDQUOT') throw error;
      }
      at += piece.length;
    }
  }

  close(): void {
    closeSync(this.#fd);
  }

  #nextPiece(): void {
    closeSync(this.#fd);
    const start = this.#start + this.#size;
    this.#fd = openSync(pieceName(this.#path, start), flags, 0o600);
    for (const { file } of piecesOf(this.#path).slice(0, -2)) rmSync(file, { force: true });
    this.#start = start;
    this.#size = 0;
  }
}

/**
 * Has the log at `to` go on where the one at `from` ends, with the same offsets, unless it is as far already. Nobody may write
 * to `to` meanwhile; who reads it sees it grow. Throws what copying fails with.
 */
export function carryOn(from: string, to: string): void {
  if (readConsole(from, 0, 0).end <= readConsole(to, 0, 0).end) return;
  const kept = new Set<string>();
  for (const { file, start } of piecesOf(from)) {
    const name = pieceName(to, start);
    copyFileSync(file, `${to}.new`);
    renameSync(`${to}.new`, name);
    kept.add(name);
  }
  for (const { file } of piecesOf(to)) if (!kept.has(file)) rmSync(file);
}

/** What a log has: offsets of its first byte that is kept, of the first byte of `bytes`, and after its last. */
export interface ConsoleRead {
  readonly start: number;
  readonly offset: number;
  readonly end: number;
  readonly bytes: Uint8Array;
}

/**
 * Bytes from `offset` on, at most `mostBytes`; what lies before the log's start is left out. A negative offset counts from the
 * end. A log that is not there is empty.
 */
export function readConsole(path: string, offset: number, mostBytes: number): ConsoleRead {
  for (;;) {
    const pieces: (Piece & { readonly fd: number; readonly size: number })[] = [];
    try {
      for (const piece of piecesOf(path)) {
        const fd = openSync(piece.file, constants.O_RDONLY | constants.O_NOFOLLOW);
        pieces.push({ ...piece, fd, size: fstatSync(fd).size });
      }
      return readPieces(pieces, offset, mostBytes);
    } catch (error) {
      // Its writer has let go of the oldest piece meanwhile.
      if ((error as NodeJS.ErrnoException).code !== 'ENOENT') throw error;
    } finally {
      for (const { fd } of pieces) closeSync(fd);
    }
  }
}

function readPieces(
  pieces: readonly (Piece & { readonly fd: number; readonly size: number })[],
  wanted: number,
  mostBytes: number,
): ConsoleRead {
  const last = pieces.at(-1);
  const start = pieces[0]?.start ?? 0;
  const end = last === undefined ? 0 : last.start + last.size;
  const offset = Math.min(end, Math.max(start, wanted < 0 ? end + wanted : wanted));
  const bytes = new Uint8Array(Math.max(0, Math.min(mostBytes, end - offset)));
  let filled = 0;
  for (const piece of pieces) {
    const at = offset + filled - piece.start;
    if (at >= piece.size) continue;
    while (filled < bytes.length && offset + filled - piece.start < piece.size) {
      const position = offset + filled - piece.start;
      const got = readSync(piece.fd, bytes, filled, Math.min(bytes.length - filled, piece.size - position), position);
      if (got === 0) break;
      filled += got;
    }
  }
  return { start, offset, end, bytes: bytes.subarray(0, filled) };
}
