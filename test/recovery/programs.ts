/** Programs that read and write the tree without pause, whoever serves it, and what they need there. */
import assert from 'node:assert/strict';

/** 300 names, so that no listing is one reply. */
const NAMES = 300;
const longName = (i: number): string => `name-${String(i).padStart(4, '0')}-${'x'.repeat(180)}`;
/** `/many`, as a spec has it. */
export const many = Array.from({ length: NAMES }, (_, i) => `${longName(i)}: v`).join(', ');
/** `/instance/note`: the number of its version, and so much that it is read in parts. */
export const noteOf = (n: number): string => `${n} ${'n'.repeat(3000 + (n % 7))}`;

/** What they do in the tree's root, for ever, each ending with a code other than 0 at the first thing that must not be. */
export const programs = {
  lines: (name: string) => `i=0; while i=$((i+1)); do printf '%s\\n' $i >> guest/${name} || exit 3; echo $i; done`,
  directories: (name: string) =>
    `mkdir guest/${name}; i=0; while i=$((i+1)); do mkdir guest/${name}/$i || exit 3; echo $i; done`,
  /** Exclusive creation, rename and removal: what answers differently when it is done twice. */
  names: (name: string) =>
    `mkdir guest/${name}; cd guest/${name}; set -C; i=0; while i=$((i+1)); do : > a || exit 3; mv a b || exit 4; rm b || exit 5; ln -s t c || exit 6; rm c || exit 7; echo $i; done`,
  /** Replaces a file, and reads it: never empty, never mixed, never the one before. */
  replaces: (name: string) =>
    `i=0; while i=$((i+1)); do echo $i$i$i > guest/${name} || exit 3; read x < guest/${name} || exit 4; [ "$x" = $i$i$i ] || exit 5; echo $i; done`,
  /** One handle for all writes and another for reads. */
  holds: (name: string) =>
    `: > guest/${name}; exec 3>>guest/${name} 4<guest/${name}; i=0; while i=$((i+1)); do echo $i >&3 || exit 3; read x <&4 || exit 4; [ "$x" = $i ] || exit 5; echo $i; done`,
  stats: () =>
    `i=0; while i=$((i+1)); do [ -s instance/id ] || exit 3; ls -l instance guest >/dev/null || exit 4; echo $i; done`,
  lists: () => `i=0; while i=$((i+1)); do set -- many/*; [ $# = ${NAMES} ] || exit 3; echo $i; done`,
  /** The value that a program opened stays, whole, however slowly it reads and whatever comes meanwhile. */
  slow: () =>
    `i=0; while i=$((i+1)); do exec 3<instance/note; a=$(dd bs=500 count=1 <&3 2>/dev/null); sleep 0.3; b=$(cat <&3) || exit 3
     n=\${a%% *}; c="$a$b"; [ \${#c} = $((3001 + \${#n} + n % 7)) ] || { echo "\${#c} of $n" >&2; exit 4; }; exec 3<&-; echo $i; done`,
} as const;
export type Kind = keyof typeof programs;

/** How many numbers a program has printed; they must be consecutive. */
export function counted(output: string): number {
  const numbers = output.split('\n').slice(0, -1);
  for (const [i, number] of numbers.entries()) assert.equal(number, String(i + 1));
  return numbers.length;
}
