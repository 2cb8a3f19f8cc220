/**
 * `node --hash-seed=1 FLAGS scripts/build/compile.ts SCRIPT CACHE`: writes the code that V8 makes of a script. V8 takes it
 * back only under the same flags, so this runs with those that the script will run with, FLAGS. The others shape the code
 * and are put back before V8 writes down what the flags were: all functions are compiled, also those that V8 would compile
 * at their first call (a process is up in two thirds of the time, and 2 MB smaller), and the same script gives the same bytes.
 */
import { readFileSync, writeFileSync } from 'node:fs';
import { setFlagsFromString } from 'node:v8';
import { Script } from 'node:vm';

const [script, cache] = process.argv.slice(2);
if (script === undefined || cache === undefined) throw new Error('usage: compile.ts SCRIPT CACHE');
setFlagsFromString('--no-lazy');
const compiled = new Script(readFileSync(script, 'latin1'));
for (const flag of ['--lazy', '--hash-seed=0']) setFlagsFromString(flag);
writeFileSync(cache, compiled.createCachedData());
