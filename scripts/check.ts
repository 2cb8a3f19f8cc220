/** `npm run check`: every check that needs no kernel, guest or server. Each prints its own findings; all of them run. */
import { spawnSync } from 'node:child_process';

const bin = 'node_modules/.bin/';
const checks: readonly { name: string; command: readonly [string, ...string[]] }[] = [
  { name: 'format', command: [`${bin}biome`, 'check', '.'] },
  { name: 'lint', command: [`${bin}oxlint`, '--deny-warnings', '.'] },
  { name: 'types', command: [`${bin}tsc`] },
  { name: 'types of the console', command: [`${bin}tsc`, '-p', 'console'] },
  { name: 'imports', command: [process.execPath, 'scripts/check-imports.ts'] },
  { name: 'docs', command: [process.execPath, 'scripts/generate-docs.ts', '--check'] },
];

let failed = 0;
for (const { name, command } of checks) {
  const [file, ...args] = command;
  const result = spawnSync(file, args, { stdio: 'inherit' });
  const ok = result.status === 0;
  console.log(`${ok ? 'ok    ' : 'FAILED'} ${name}`);
  if (!ok) failed++;
}
process.exitCode = failed === 0 ? 0 : 1;
