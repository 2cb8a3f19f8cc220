/** Questions to the person at the terminal. */
import type { Terminal } from './terminal.ts';

/** Ctrl-C at a question. */
export class Interrupted extends Error {
  readonly code = 'INTERRUPTED';

  constructor() {
    super('interrupted');
    this.name = 'Interrupted';
  }
}

const ctrlC = 0x03;
const ctrlD = 0x04;
const backspaces = new Set([0x08, 0x7f]);
const ctrlU = 0x15;
const lineEnds = new Set([0x0a, 0x0d]);

/** One line typed without echo, as bytes and without its end. */
export const promptSecret = async (terminal: Terminal, question: string): Promise<Uint8Array> => {
  const { input, err } = terminal;
  // First, so that not even what is typed at once is shown.
  input.setMode('keys');
  const typed: number[] = [];
  try {
    err(question);
    for await (const chunk of input.chunks()) {
      for (const byte of chunk) {
        if (byte === ctrlC) throw new Interrupted();
        if (lineEnds.has(byte) || (byte === ctrlD && typed.length === 0)) return Uint8Array.from(typed);
        if (byte === ctrlU) typed.length = 0;
        else if (backspaces.has(byte)) dropCharacter(typed);
        else if (byte !== ctrlD) typed.push(byte);
      }
    }
    return Uint8Array.from(typed);
  } finally {
    input.setMode('lines');
    input.close();
    typed.fill(0);
    err('\n');
  }
};

/** UTF-8: bytes that continue a character, and the one that begins it. */
const dropCharacter = (typed: number[]): void => {
  while (((typed.pop() ?? 0) & 0xc0) === 0x80);
};

/** Yes only for "y" or "yes". */
export const promptYes = async (terminal: Terminal, question: string): Promise<boolean> => {
  terminal.err(`${question} [y/N] `);
  const decoder = new TextDecoder();
  let line = '';
  try {
    for await (const chunk of terminal.input.chunks()) {
      line += decoder.decode(chunk, { stream: true });
      if (line.includes('\n')) break;
    }
  } finally {
    terminal.input.close();
  }
  return /^y(es)?$/i.test(line.split('\n')[0]!.trim());
};

/** All of standard input. Undefined when there is more than `mostBytes`. */
export const readInput = async ({ input }: Terminal, mostBytes: number): Promise<Uint8Array | undefined> => {
  const chunks: Uint8Array[] = [];
  let length = 0;
  for await (const chunk of input.chunks()) {
    length += chunk.length;
    if (length > mostBytes) {
      input.close();
      return undefined;
    }
    chunks.push(chunk);
  }
  const all = new Uint8Array(length);
  let at = 0;
  for (const chunk of chunks) {
    all.set(chunk, at);
    at += chunk.length;
  }
  return all;
};
