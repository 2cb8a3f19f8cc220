/** `porthole image build tiny`: the tiny guest as a VM of its own, with a shell on its console. */
import { copyFileSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { tinyImage } from './image.ts';

const directory = process.argv[2];
if (directory === undefined) throw new Error('usage: node images/tiny/recipe.ts DIRECTORY');
const { kernel, initramfs } = await tinyImage();
copyFileSync(kernel, join(directory, 'kernel'));
copyFileSync(initramfs, join(directory, 'initrd'));
const commandLine = 'tiny=vm quiet panic=-1 random.trust_cpu=on';
writeFileSync(
  join(directory, 'image.json'),
  JSON.stringify({ kind: 'kernel', kernel: 'kernel', initrd: 'initrd', commandLine }),
);
