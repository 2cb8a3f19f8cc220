/**
 * `npm run build`: makes `dist/porthole`, one file that needs no Node and no package, for the kind of machine it is built on,
 * and `dist/THIRD-PARTY-LICENSES`. `--output DIR`: there instead of `dist`. The same sources give the same bytes.
 */
import { execFileSync } from 'node:child_process';
import { mkdirSync, mkdtempSync, readFileSync, renameSync, rmSync, writeFileSync } from 'node:fs';
import path from 'node:path';
import { parseArgs } from 'node:util';
import { buildSync } from 'esbuild';
import { buildText, commandPart, processParts, threadParts, versionOf, versionText } from '../src/parts/index.ts';
import { bundle } from './build/bundle.ts';
import { licensesOf } from './build/licenses.ts';

const { values } = parseArgs({ options: { output: { type: 'string' } } });
const root = path.resolve(import.meta.dirname, '..');
const dist = path.resolve(values.output ?? path.join(root, 'dist'));
process.chdir(root);
mkdirSync('.cache', { recursive: true });
mkdirSync(dist, { recursive: true });
const work = mkdtempSync(path.resolve('.cache/build-'));
const output = path.join(dist, 'porthole');

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

const version = versionOf(new URL('../', import.meta.url));
asset('version.json', JSON.stringify(version));
const koffi = `node_modules/@koromix/koffi-${process.platform}-${process.arch}`;
assets['koffi.node'] = path.resolve(koffi, `${process.platform}_${process.arch}`, 'koffi.node');
const bundled = new Set<string>();
const builds: Record<string, string> = {};
for (const part of parts) {
  const { source, inputs } = await bundle(path.join('src', part.file));
  for (const input of inputs) bundled.add(input);
  builds[part.name] = buildText(version.version, [source, readFileSync(assets['koffi.node'])]);
  const script = asset(`${part.name}.js`, source);
  const cache = path.join(work, `${part.name}.cache`);
  execFileSync(
    process.execPath,
    ['--hash-seed=1', ...flags, ...part.flags, 'scripts/build/compile.ts', script, cache],
    {
      stdio: 'inherit',
    },
  );
  assets[`${part.name}.cache`] = cache;
  console.log(`${part.name}: ${inputs.length} modules, ${source.length} bytes`);
}

asset('builds.json', JSON.stringify(builds));

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

// The package of koffi's native part has no licence file; it is koffi's.
const nodePackage = `node_modules/node-${process.platform}-${process.arch}`;
writeFileSync(path.join(dist, 'THIRD-PARTY-LICENSES'), licensesOf(bundled, [nodePackage]));

const config = path.join(work, 'sea.json');
writeFileSync(
  config,
  JSON.stringify({
    // Relative, since the executable remembers it.
    main: path.basename(main),
    output: `${output}.new`,
    disableExperimentalSEAWarning: true,
    execArgv: flags,
    // Only what our own command line says (`--node-options`), never NODE_OPTIONS of whoever starts it.
    execArgvExtension: 'cli',
    assets,
  }),
);
execFileSync(process.execPath, ['--build-sea', config], { cwd: work, stdio: ['ignore', 'ignore', 'inherit'] });
renameSync(`${output}.new`, output);

for (const part of parts) {
  const args = [`--node-options=${part.flags.join(' ')}`, 'part:compiled', part.name];
  const compiled = execFileSync(output, args, { encoding: 'utf8' }).trim();
  if (compiled !== 'true') throw new Error(`V8 refuses the compiled code of "${part.name}" in ${output}`);
}
rmSync(work, { recursive: true });
console.log(`${output}: ${versionText(version)}`);
