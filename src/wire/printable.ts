/**
 * Words of a process that a guest may have taken over, safe to print: a terminal obeys control characters, and a line break
 * would begin a line that we seem to say.
 */
export const printable = (words: string): string =>
  words.replaceAll(/[\p{Cc}\p{Cf}\p{Zl}\p{Zp}]/gu, (character) => {
    return `\\u{${character.codePointAt(0)!.toString(16)}}`;
  });
