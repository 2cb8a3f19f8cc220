import { EILSEQ, EINVAL, ENAMETOOLONG, ENOENT } from '../wire/index.ts';
import { limits } from './spec.ts';

/** Bytes of a string in UTF-8. */
export function utf8Bytes(text: string): number {
  let bytes = text.length;
  for (let i = 0; i < text.length; i++) {
    const code = text.charCodeAt(i);
    if (code < 0x80) continue;
    // A surrogate pair is two units and four bytes.
    bytes += code < 0x800 || (code >= 0xd800 && code <= 0xdfff) ? 1 : 2;
  }
  return bytes;
}

/** 0, or why a name can't be one: ENOENT (empty), EINVAL (`.`, `..`, a slash, NUL), ENAMETOOLONG, EILSEQ (not Unicode). */
export function checkName(name: string): number {
  if (name === '') return ENOENT;
  if (name === '.' || name === '..' || name.includes('/') || name.includes('\0')) return EINVAL;
  if (name.length > limits.nameBytes || utf8Bytes(name) > limits.nameBytes) return ENAMETOOLONG;
  return name.isWellFormed() ? 0 : EILSEQ;
}
