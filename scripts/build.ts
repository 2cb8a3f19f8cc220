/** `npm run build`: makes `dist/porthole`, one file that needs no Node and no package, for the machine it is built on. */
import { execFileSync } from 'node:child_process';
import { mkdirSync, renameSync, rmSync, writeFileSync } from 'node:fs';
import path from 'node:path';
import { buildSync } from 'esbuild';
import { commandPart, processParts, threadParts, versionOf, versionText } from '../src/parts/index.ts';
import { bundle } from './build/bundle.ts';

process.chdir(path.resolve(import.meta.dirname, '..'));
const work = path.resolve('.cache/build');
const output = path.resolve('dist/porthole');

/** What Node is started with in the executable: FFI for one call (src/sys/koffi-in-memory.ts). */
const flags = ['--experimental-ffi', '--disable-warning=ExperimentalWarning'] as const;

interface Part {
  readonly name: string;
  readonly file: string;
  readonly flags: readonly string[];
}
const parts: readonly Part[] = [
  { ...commandPart, flags: [] },
  ...Object.entries(processParts).map(([name, part]) => ({ name, ...part })),
  ...Object.entries(threadParts).map(([name, part]) => ({ name, ...part, flags: [] })),
];

const assets: Record<string, string> = {};
const asset = (name: string, content: string): string => {
  const file = path.join(work, name);
  writeFileSync(file, content);
  assets[name] = file;
  return file;
};

rmSync(work, { recursive: true, force: true });
mkdirSync(work, { recursive: true });
mkdirSync('dist', { recursive: true });

const version = versionOf(new URL('../', import.meta.url));
asset('version.json', JSON.stringify(version));
for (const part of parts) {
  const { source, inputs } = await bundle(path.join('src', part.file));
  const script = asset(`${part.name}.js`, source);
  const cache = path.join(work, `${part.name}.cache`);
  execFileSync(process.execPath, [...flags, ...part.flags, 'scripts/build/compile.ts', script, cache], {
    stdio: 'inherit',
  });
  assets[`${part.name}.cache`] = cache;
  console.log(`${part.name}: ${inputs.length} modules, ${source.length} bytes`);
}

const { outputFiles } = buildSync({
  entryPoints: ['src/parts/boot.ts'],
  bundle: true,
  write: false,
  format: 'cjs',
  platform: 'node',
  target: 'node26',
  charset: 'ascii',
});
const boot = outputFiles[0]!.text;
asset('boot.js', boot);
const main = path.join(work, 'main.js');
writeFileSync(main, `${boot}\nbootProcess();\n`);

const koffi = `node_modules/@koromix/koffi-${process.platform}-${process.arch}`;
assets['koffi.node'] = path.resolve(koffi, `${process.platform}_${process.arch}`, 'koffi.node');

const config = path.join(work, 'sea.json');
writeFileSync(
  config,
  JSON.stringify({
    main,
    output: `${output}.new`,
    disableExperimentalSEAWarning: true,
    execArgv: flags,
    // Only what our own command line says (`--node-options`), never NODE_OPTIONS of whoever starts it.
    execArgvExtension: 'cli',
    assets,
  }),
);
execFileSync(process.execPath, ['--build-sea', config], { stdio: ['ignore', 'ignore', 'inherit'] });
renameSync(`${output}.new`, output);

for (const part of parts) {
  const args = [`--node-options=${part.flags.join(' ')}`, 'part:compiled', part.name];
  const compiled = execFileSync(output, args, { encoding: 'utf8' }).trim();
  if (compiled !== 'true') throw new Error(`V8 refuses the compiled code of "${part.name}" in ${output}`);
}
console.log(`dist/porthole: ${versionText(version)}`);
