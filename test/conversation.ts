/** Golden conversations: annotated hex, replayed byte for byte. */
import { readFileSync } from 'node:fs';

interface Exchanged {
  readonly name: string;
  readonly request: Uint8Array;
  /** Undefined: there is no answer. */
  readonly reply: Uint8Array | undefined;
}

const bytesOf = (text: string): Uint8Array =>
  Uint8Array.from(
    text
      .split('\n')
      .flatMap((line) => line.replace(/#.*/, '').trim().split(/\s+/))
      .filter(Boolean),
    (hex) => Number.parseInt(hex, 16),
  );

/** `> NAME`, a request in hex, then `<` and its answer or `=`; `#` starts a comment. */
export function conversation(file: URL): Exchanged[] {
  return readFileSync(file, 'utf8')
    .split(/^> /m)
    .slice(1)
    .map((part) => {
      const name = part.slice(0, part.indexOf('\n'));
      const [request, reply] = part.slice(part.indexOf('\n')).split(/^[<=]$/m);
      return {
        name,
        request: bytesOf(request!),
        reply: /^=$/m.test(part) ? undefined : bytesOf(reply!),
      };
    });
}
