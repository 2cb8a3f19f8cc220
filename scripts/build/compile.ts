/**
 * `node FLAGS scripts/build/compile.ts SCRIPT CACHE`: writes the code that V8 makes of a script. V8 takes it back only under
 * the same flags, so this runs with those that the script will run with.
 */
import { readFileSync, writeFileSync } from 'node:fs';
import { Script } from 'node:vm';

const [script, cache] = process.argv.slice(2);
if (script === undefined || cache === undefined) throw new Error('usage: compile.ts SCRIPT CACHE');
writeFileSync(cache, new Script(readFileSync(script, 'latin1')).createCachedData());
