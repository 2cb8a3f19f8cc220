/**
 * Holds the import rule: rooms of `src/` import downwards only, `wire` and `tree` import nothing of Node,
 * and only `sys` touches FFI. Type-only imports count. Fails as well when it saw fewer modules or imports than there
 * must be, so that a parser that sees nothing cannot pass.
 */
import { readFileSync } from 'node:fs';
import { glob } from 'node:fs/promises';
import path from 'node:path';
import { parseSync } from 'oxc-parser';

/** Rooms in layers, lowest first: a room may import rooms of lower layers, and those siblings that `siblings` names. */
const layers = [
  ['wire', 'sys', 'parts'],
  ['tree', 'store'],
  ['fuse', 'ninep', 'virtio', 'imds', 'qemu', 'records'],
  ['device', 'disks', 'uplink', 'images', 'network'],
  ['agent', 'host', 'cluster'],
  ['cli'],
];
const siblings = new Set(['virtio>fuse', 'sys>wire']);
const withoutNode = new Set(['wire', 'tree']);
const withFfi = new Set(['sys']);
/** `cluster` parses nothing that a guest sends. */
const forbidden = new Set([
  'cluster>fuse',
  'cluster>ninep',
  'cluster>virtio',
  'cluster>imds',
  'cluster>qemu',
  'cluster>device',
  'cluster>images',
]);

const layerOf = (room: string) => layers.findIndex((rooms) => rooms.includes(room));
const findings: string[] = [];
let modules = 0;
let imports = 0;

for await (const file of glob('src/**/*.ts')) {
  modules++;
  const room = file.split(path.sep)[1]!;
  if (layerOf(room) < 0)
    findings.push(`${file}: "${room}" is no room; add it to the layers of scripts/check-imports.ts`);
  const isTest = file.endsWith('.test.ts');
  const { module, program, errors } = parseSync(file, readFileSync(file, 'utf8'));
  if (errors.length > 0) findings.push(`${file}: cannot be parsed: ${errors[0]!.message}`);
  const specifiers = [
    ...module.staticImports.map((entry) => entry.moduleRequest.value),
    ...module.staticExports.flatMap((entry) =>
      entry.entries.flatMap((e) => (e.moduleRequest ? [e.moduleRequest.value] : [])),
    ),
    ...module.dynamicImports.flatMap((entry) => {
      const text = readFileSync(file, 'utf8').slice(entry.moduleRequest.start, entry.moduleRequest.end);
      return /^['"]/.test(text) ? [text.slice(1, -1)] : [];
    }),
  ];
  if (program.body.length > 0) imports += specifiers.length;
  for (const specifier of specifiers) {
    if (specifier.startsWith('.')) {
      const target = path.relative('.', path.resolve(path.dirname(file), specifier));
      const targetRoom = target.split(path.sep)[1]!;
      if (target.split(path.sep)[0] !== 'src') {
        if (!isTest) findings.push(`${file}: imports "${specifier}" outside src/; only tests may`);
        continue;
      }
      if (targetRoom === room) continue;
      const edge = `${room}>${targetRoom}`;
      if (forbidden.has(edge) || (layerOf(targetRoom) >= layerOf(room) && !siblings.has(edge)))
        findings.push(`${file}: imports "${specifier}", but ${room} may not import ${targetRoom}`);
      else if (!isTest && path.basename(target) !== 'index.ts')
        findings.push(`${file}: imports "${specifier}" past the face of ${targetRoom}; import ${targetRoom}/index.ts`);
      continue;
    }
    if (isTest) continue;
    if (specifier === 'koffi' && !withFfi.has(room)) findings.push(`${file}: imports koffi; only sys may`);
    if (specifier.startsWith('node:') && withoutNode.has(room))
      findings.push(`${file}: imports "${specifier}", but ${room} is pure`);
  }
}

for (const finding of findings) console.error(finding);
if (modules < 20 || imports < modules) {
  console.error(`saw only ${modules} modules and ${imports} imports under src/; the check itself is broken`);
  process.exitCode = 1;
}
if (findings.length > 0) process.exitCode = 1;
console.log(`imports: ${modules} modules, ${imports} imports, ${findings.length} findings`);
