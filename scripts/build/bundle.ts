/** Makes one script of an entry and all that it imports: text that evaluates to `async (require) => void`. */
import { builtinModules } from 'node:module';
import path from 'node:path';
import { build, type Plugin } from 'esbuild';
import { parseSync } from 'oxc-parser';

export interface Bundle {
  /** ASCII. */
  readonly source: string;
  /** What it was made of, from the root of the checkout. */
  readonly inputs: readonly string[];
}

/** koffi looks for its native part in node_modules, where there is none; ours has it in memory. */
const koffiInMemory: Plugin = {
  name: 'koffi-in-memory',
  setup: ({ onResolve }) => {
    onResolve({ filter: /^\.\/src\/static\.js$/ }, ({ importer }) =>
      importer.endsWith('/koffi/src/koffi/index.js') ? { path: path.resolve('src/sys/koffi-in-memory.ts') } : undefined,
    );
  },
};

export async function bundle(entry: string): Promise<Bundle> {
  const { outputFiles, metafile } = await build({
    entryPoints: [entry],
    bundle: true,
    write: false,
    metafile: true,
    format: 'esm',
    platform: 'node',
    target: 'node26',
    // Names stay, for stack traces.
    minifyWhitespace: true,
    minifySyntax: true,
    charset: 'ascii',
    legalComments: 'none',
    // Nothing is beside the executable: what asks for it must ask `src/parts`.
    define: { 'import.meta.url': '"file:///porthole"', 'import.meta.dirname': '"/"' },
    plugins: [koffiInMemory],
    logLevel: 'warning',
  });
  return {
    source: asciiOnly(asFunction(entry, outputFiles[0]!.text)),
    inputs: Object.keys(metafile.inputs).toSorted(),
  };
}

/** esbuild leaves only the characters of regular expressions as they are, where an escape means the same. */
const asciiOnly = (text: string): string =>
  text.replaceAll(/[\u0080-\uffff]/g, (unit) => `\\u${unit.charCodeAt(0).toString(16).padStart(4, '0')}`);

/**
 * A script, unlike a module, can be compiled ahead, and loaded from a string. It has no imports, so those of Node's own
 * modules (all others are in the bundle) become calls, and no `await` of its own, so it becomes a function that has.
 */
function asFunction(entry: string, text: string): string {
  const { module, errors } = parseSync('bundle.mjs', text);
  if (errors.length > 0) throw new Error(`the bundle of ${entry} cannot be parsed: ${errors[0]!.message}`);
  if (module.staticExports.length > 0) throw new Error(`${entry} exports something; an entry only runs`);
  let from = 0;
  let body = '';
  for (const { start, end, moduleRequest, entries } of module.staticImports) {
    const name = moduleRequest.value;
    if (!builtinModules.includes(name) && !name.startsWith('node:')) {
      throw new Error(`the bundle of ${entry} imports "${name}", which is neither in it nor Node's own`);
    }
    const call = `require(${JSON.stringify(name)})`;
    const lines = entries.map(({ importName, localName }) =>
      importName.kind === 'Name'
        ? `const {${JSON.stringify(importName.name)}:${localName.value}}=${call};`
        : `const ${localName.value}=${call};`,
    );
    body += text.slice(from, start) + (lines.length > 0 ? lines.join('') : `${call};`);
    from = end;
  }
  return `(async(require)=>{${body}${text.slice(from)}\n})`;
}
