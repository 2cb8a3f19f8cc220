/** Names in requests: bytes that come from a guest. */
import { EILSEQ, EINVAL, ENAMETOOLONG } from './errno.ts';
import { NAME_MAX } from './flags.ts';

/** Fatal: a name that is no UTF-8 is refused, not repaired into another one. The byte order mark is a character like others. */
const utf8 = new TextDecoder('utf-8', { fatal: true, ignoreBOM: true });

const NUL = 0;
const SLASH = 0x2f;
const DOT = 0x2e;
const FIRST_NOT_ASCII = 0x80;

/** Works on any Uint8Array without a view of its own: a quarter of the time of a TextDecoder. */
const { latin1Slice } = Buffer.prototype;

/** Position of the NUL that ends what starts at `start`, or -1. */
export function endOfName(bytes: Uint8Array, start: number, end: number): number {
  for (let at = start; at < end; at++) if (bytes[at] === NUL) return at;
  return -1;
}

/** Bytes `start` to `end` as text, or EILSEQ. */
export function decodeText(bytes: Uint8Array, start: number, end: number): string | number {
  try {
    return utf8.decode(bytes.subarray(start, end));
  } catch {
    return EILSEQ;
  }
}

/**
 * The name of a directory entry in bytes `start` to `end`. EINVAL for '', '.', '..' and what holds a slash or NUL, none of
 * which a kernel sends; ENAMETOOLONG beyond 255 bytes; EILSEQ for what is not UTF-8.
 */
export function decodeName(bytes: Uint8Array, start: number, end: number): string | number {
  const length = end - start;
  if (length === 0) return EINVAL;
  if (length > NAME_MAX) return ENAMETOOLONG;
  if (bytes[start] === DOT && (length === 1 || (length === 2 && bytes[start + 1] === DOT))) return EINVAL;
  let seen = 0;
  for (let at = start; at < end; at++) {
    const byte = bytes[at]!;
    if (byte === SLASH || byte === NUL) return EINVAL;
    seen |= byte;
  }
  return seen < FIRST_NOT_ASCII ? latin1Slice.call(bytes, start, end) : decodeText(bytes, start, end);
}
