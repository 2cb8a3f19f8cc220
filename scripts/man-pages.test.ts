import assert from 'node:assert/strict';
import { test } from 'node:test';
import { Command } from 'commander';
import { manPages } from './man-pages.ts';

const program = (): Command => {
  const root = new Command('tool').description('does things').addHelpText('after', '\nExit codes:\n  0  done');
  root
    .command('put')
    .description('keep a value')
    .argument('<file>', 'where')
    .option('--as-is', String.raw`not even \n is read`)
    .addHelpText('after', '\n.dotted line\n\nExamples:\n  tool put \\\n    --as-is x');
  root.command('key').description('keys').command('ls').description('list them').option('--json', 'for programs');
  return root;
};

test('manPages gives a page for the program and one for each of its commands', () => {
  const pages = manPages(program(), '1.2.3');
  assert.deepEqual([...pages.keys()], ['tool.1', 'tool-put.1', 'tool-key.1']);
  assert.match(pages.get('tool.1')!, /^\.TH TOOL 1 "" "porthole 1\.2\.3" "Porthole"$/m);
  assert.match(pages.get('tool.1')!, /^\.TP\n\.B tool\\-put\(1\)\nkeep a value$/m);
  assert.match(pages.get('tool.1')!, /^\.SH DESCRIPTION\nExit codes:\n\.PP\n\.nf\n\.RS 4\n0 {2}done\n\.RE\n\.fi$/m);
});

test('manPages shows the commands of a group in the page of the group', () => {
  const text = manPages(program(), '1.2.3').get('tool-key.1')!;
  assert.match(text, /^\.SH SYNOPSIS\n\.B tool key ls\n\[options\]$/m);
  assert.match(text, /^\.SS "key ls"\nList them\.\n\.TP\n\.B \\-\\-json\nfor programs$/m);
});

test('manPages lets nothing be taken for a request or an escape, and keeps the lines of examples', () => {
  const text = manPages(program(), '1.2.3').get('tool-put.1')!;
  assert.match(text, /^\.B \\-\\-as\\-is\nnot even \\en is read$/m);
  assert.match(text, /^\\&\.dotted line$/m);
  assert.match(text, /^tool put \\e\n {2}\\-\\-as\\-is x$/m);
});
