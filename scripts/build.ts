/**
 * `npm run build`: makes `dist/porthole` and, for guests, `dist/porthole-agent`: files that need no Node and no package, for the
 * kind of machine they are built on; and `dist/THIRD-PARTY-LICENSES`. `--output DIR`: there instead of `dist`. The same sources
 * give the same bytes.
 */
import { execFileSync } from 'node:child_process';
import { mkdirSync, mkdtempSync, readFileSync, renameSync, rmSync, writeFileSync } from 'node:fs';
import path from 'node:path';
import { parseArgs } from 'node:util';
import { buildSync } from 'esbuild';
import {
  agentPart,
  buildText,
  commandPart,
  consoleAsset,
  consolePack,
  processParts,
  threadParts,
  versionOf,
  versionText,
} from '../src/parts/index.ts';
import { bundle } from './build/bundle.ts';
import { licensesOf } from './build/licenses.ts';

const { values } = parseArgs({ options: { output: { type: 'string' } } });
const root = path.resolve(import.meta.dirname, '..');
const dist = path.resolve(values.output ?? path.join(root, 'dist'));
process.chdir(root);
mkdirSync('.cache', { recursive: true });
mkdirSync(dist, { recursive: true });
const work = mkdtempSync(path.resolve('.cache/build-'));

/** What Node is started with in the executables: FFI for one call (src/sys/koffi-in-memory.ts). */
const nodeFlags = ['--experimental-ffi', '--disable-warning=ExperimentalWarning'] as const;
const version = versionOf(new URL('../', import.meta.url));
const koffi = path.resolve(
  `node_modules/@koromix/koffi-${process.platform}-${process.arch}`,
  `${process.platform}_${process.arch}`,
  'koffi.node',
);
const koffiBytes = readFileSync(koffi);
const boot = buildSync({
  entryPoints: ['src/parts/boot.ts'],
  bundle: true,
  write: false,
  format: 'cjs',
  platform: 'node',
  target: 'node26',
  charset: 'ascii',
}).outputFiles[0]!.text;
const bundled = new Set<string>();

interface Part {
  readonly name: string;
  readonly file: string;
  readonly flags: readonly string[];
}

const rows = (parts: Readonly<Record<string, Omit<Part, 'name' | 'flags'> & Partial<Part>>>): Part[] =>
  Object.entries(parts).map(([name, { file, flags = [] }]) => ({ name, file, flags }));

/** `own`: what it runs when it is asked for no part, under flags that all its parts have then. */
const makeExecutable = async (own: Part, others: readonly Part[]): Promise<void> => {
  const output = path.join(dist, own.name);
  const place = path.join(work, own.name);
  mkdirSync(place);
  const flags = [...nodeFlags, ...own.flags];
  const assets: Record<string, string> = { 'koffi.node': koffi };
  const asset = (name: string, content: string): string => {
    const file = path.join(place, name);
    writeFileSync(file, content);
    assets[name] = file;
    return file;
  };
  if (own === commandPart) assets[consoleAsset] = path.resolve(consolePack);
  asset('version.json', JSON.stringify(version));
  const parts = [own, ...others];
  const builds: Record<string, string> = {};
  for (const part of parts) {
    const { source, inputs } = await bundle(path.join('src', part.file));
    for (const input of inputs) bundled.add(input);
    builds[part.name] = buildText(version.version, [source, koffiBytes]);
    const script = asset(`${part.name}.js`, source);
    const cache = path.join(place, `${part.name}.cache`);
    const args = ['--hash-seed=1', ...flags, ...part.flags, 'scripts/build/compile.ts', script, cache];
    execFileSync(process.execPath, args, { stdio: 'inherit' });
    assets[`${part.name}.cache`] = cache;
    console.log(`${own.name}, ${part.name}: ${inputs.length} modules, ${source.length} bytes`);
  }
  asset('builds.json', JSON.stringify(builds));
  asset('boot.js', boot);
  const main = path.join(place, 'main.js');
  writeFileSync(main, `${boot}\nbootProcess(${JSON.stringify(own.name)});\n`);
  const config = path.join(place, 'sea.json');
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
  execFileSync(process.execPath, ['--build-sea', config], { cwd: place, stdio: ['ignore', 'ignore', 'inherit'] });
  renameSync(`${output}.new`, output);
  for (const part of parts) {
    const args = [`--node-options=${part.flags.join(' ')}`, 'part:compiled', part.name];
    const compiled = execFileSync(output, args, { encoding: 'utf8' }).trim();
    if (compiled !== 'true') throw new Error(`V8 refuses the compiled code of "${part.name}" in ${output}`);
  }
  console.log(`${output}: ${versionText(version)}`);
};

await makeExecutable(commandPart, [...rows(processParts), ...rows(threadParts)]);
await makeExecutable(agentPart, []);

// The package of koffi's native part has no licence file; it is koffi's.
const nodePackage = `node_modules/node-${process.platform}-${process.arch}`;
writeFileSync(path.join(dist, 'THIRD-PARTY-LICENSES'), licensesOf(bundled, [nodePackage]));
rmSync(work, { recursive: true });
