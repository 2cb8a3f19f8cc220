/** `npm run bench -- [GROUP...] [--rounds N] [--self-test]`: every row is a ratio against a peer in the same run. */
import { parseArgs } from 'node:util';
import { apiWrites } from './api-writes.ts';
import { atRest } from './at-rest.ts';
import { frontEnd } from './front-end.ts';
import { fuseMount } from './fuse-mount.ts';
import { inGuest } from './guest.ts';
import { hostDaemon } from './host-daemon.ts';
import type { Group, Row } from './measure.ts';
import { metadataServers } from './metadata.ts';
import { overNinep } from './ninep.ts';
import { table, writeResults } from './report.ts';
import { vsockStreams } from './vsock.ts';

const groups: readonly Group[] = [
  frontEnd,
  inGuest,
  fuseMount,
  atRest,
  apiWrites,
  ...hostDaemon,
  overNinep,
  vsockStreams,
  metadataServers,
];
const DEFAULT_ROUNDS = 11;
/** A peer against itself differs by the machine's noise only. */
const SELF_TEST_RANGE = { atLeast: 0.75, atMost: 1.33 } as const;

const usage = `usage: npm run bench -- [GROUP...] [--rounds N] [--self-test]
groups: ${groups.map(({ letter, title }) => `${letter} (${title})`).join(', ')}`;

const options = {
  rounds: { type: 'string', default: String(DEFAULT_ROUNDS) },
  'self-test': { type: 'boolean', default: false },
  help: { type: 'boolean', short: 'h', default: false },
} as const;

function parsed() {
  try {
    return parseArgs({ allowPositionals: true, options });
  } catch (error) {
    console.error(`${(error as Error).message}\n${usage}`);
    return undefined;
  }
}

async function main(): Promise<number> {
  const line = parsed();
  if (line === undefined) return 2;
  const { positionals, values } = line;
  if (values.help) {
    console.log(usage);
    return 0;
  }
  const rounds = Number(values.rounds);
  const unknown = positionals.filter((letter) => !groups.some((group) => group.letter === letter));
  if (!Number.isInteger(rounds) || rounds < 1 || unknown.length > 0) {
    console.error(unknown.length > 0 ? `no group is named "${unknown.join('", "')}"\n${usage}` : usage);
    return 2;
  }
  const selfTest = values['self-test'];
  const rows: Row[] = [];
  let broken = 0;
  for (const group of groups) {
    if (positionals.length > 0 && !positionals.includes(group.letter)) continue;
    console.log(`${group.letter}: ${group.title}${selfTest ? ', the peer against itself' : ''}`);
    try {
      rows.push(...(await group.run({ rounds, selfTest, print: (line) => console.log(`  ${line}`) })));
    } catch (error) {
      broken++;
      console.error(`${group.letter}: ${(error as Error).message}`);
    }
  }
  const shown = selfTest ? rows.map((row) => ({ ...row, target: undefined, pass: undefined })) : rows;
  if (rows.length > 0) for (const line of table(shown)) console.log(line);
  if (selfTest) {
    const off = rows.filter(({ ratio }) => ratio < SELF_TEST_RANGE.atLeast || ratio > SELF_TEST_RANGE.atMost);
    console.log(`self-test: ${rows.length - off.length} of ${rows.length} rows within 0.75 to 1.33`);
    return broken + off.length > 0 || rows.length === 0 ? 1 : 0;
  }
  if (rows.length > 0) console.log(`written: ${writeResults(rows, new Date(), 'bench/results')}`);
  const missed = rows.filter(({ pass }) => pass === false).length;
  console.log(`${rows.filter(({ pass }) => pass === true).length} targets met, ${missed} missed`);
  return broken > 0 ? 1 : 0;
}

process.exitCode = await main();
