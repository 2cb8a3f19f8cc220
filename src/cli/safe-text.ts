/**
 * Text that a guest wrote, for a person's terminal. A terminal obeys what it is sent: titles, clipboard, keys, reports that
 * are typed back. Colours and line ends pass; everything else that is not text is made visible or left out.
 */

// oxlint-disable no-control-regex -- control characters are what this is about
/** CSI … final byte; OSC, DCS, PM, APC, SOS … up to BEL or ST; two-character escapes. */
const sequence =
  /\u001b(?:\[[0-?]*[ -/]*[@-~]|[\]PX^_](?:[^\u0007\u001b]|\u001b(?!\\))*(?:\u0007|\u001b\\)|[ -/]*[0-Z\\^-~])/gu;
const colour = /^\u001b\[[0-9;:]*m$/u;
const incomplete = /\u001b(?:\[[0-?]*[ -/]*|[\]PX^_][^\u0007\u001b]*\u001b?|[ -/]*)$/u;
/** What is not text but a line feed, a return, a tab and escape. */
const unsafe = /(?![\n\r\t\u001b])[\p{Cc}\u202a-\u202e\u2066-\u2069]/gu;
/** A sequence that is longer is no sequence. */
const longestSequence = 4096;

export class SafeText {
  readonly #decoder = new TextDecoder();
  #held = '';

  /** What may be printed by now; the start of a sequence that is not complete waits for its rest. */
  push(bytes: Uint8Array): string {
    const text = this.#held + this.#decoder.decode(bytes, { stream: true });
    const open = openSequence(text);
    this.#held = open < 0 ? '' : text.slice(open);
    return safe(open < 0 ? text : text.slice(0, open));
  }

  /** The rest. */
  end(): string {
    const text = this.#held + this.#decoder.decode();
    this.#held = '';
    return safe(text);
  }
}

/** A whole text at once. */
export const safeText = (bytes: Uint8Array): string => {
  const text = new SafeText();
  return text.push(bytes) + text.end();
};

const safe = (text: string): string =>
  text
    .replaceAll(sequence, (found) => (colour.test(found) ? found : ''))
    .replaceAll(unsafe, visible)
    // What is left of escapes was none of the known sequences.
    .replaceAll(/\u001b(?!\[[0-9;:]*m)/gu, visible);

const visible = (character: string): string => `\\u{${character.codePointAt(0)!.toString(16)}}`;

/** Where a sequence begins that is not complete, or -1. */
const openSequence = (text: string): number => {
  const at = text.search(incomplete);
  return text.length - at > longestSequence ? -1 : at;
};
