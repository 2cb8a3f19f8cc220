/** The licences of what is in the executable and not ours: a text for people, complete or an error. */
import { readdirSync, readFileSync } from 'node:fs';
import path from 'node:path';

interface Package {
  readonly name: string;
  readonly version: string;
  readonly license: string;
}

/** Packages without a licence file, of a project whose other package has it: the same authors, the same licence. */
const licenceOf: Readonly<Record<string, string>> = {
  'node_modules/@hono/zod-openapi': 'node_modules/hono',
  'node_modules/@hono/zod-validator': 'node_modules/hono',
};

/** The folder of the package that a file of node_modules belongs to; undefined for a file of ours. */
const packageFolder = (file: string): string | undefined =>
  /^(?:.*\/)?node_modules\/(?:@[^/]+\/)?[^/]+(?=\/)/.exec(file)?.[0];

/** `files` as the bundler names them, `more` folders of packages that are in it otherwise. */
export function licensesOf(files: Iterable<string>, more: readonly string[]): string {
  const folders = new Set(more);
  for (const file of files) {
    const folder = packageFolder(file);
    if (folder !== undefined) folders.add(folder);
  }
  const sections = [...folders].toSorted().map((folder) => {
    const { name, version, license } = JSON.parse(readFileSync(path.join(folder, 'package.json'), 'utf8')) as Package;
    const holder = licenceOf[folder] ?? folder;
    const texts = readdirSync(holder)
      .filter((file) => /^(licen[cs]e|copying|notice)/i.test(file))
      .toSorted()
      .map((file) => readFileSync(path.join(holder, file), 'utf8').trimEnd());
    if (texts.length === 0)
      throw new Error(`${folder} has no file with its licence (${license}); it cannot be shipped`);
    const title = `${name} ${version} (${license})`;
    return `${title}\n${'='.repeat(title.length)}\n\n${texts.join('\n\n')}\n`;
  });
  return `Porthole contains these packages, under these licences.\n\n${sections.join('\n\n')}`;
}
