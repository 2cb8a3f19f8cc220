import assert from 'node:assert/strict';
import { test } from 'node:test';
import fc from 'fast-check';
import { OpenDirectory } from './open-directories.ts';
import { OpenFiles } from './open-files.ts';
import { NameMap } from './persistent.ts';

test('OpenDirectory gives the entries that are not hidden by their index, in whatever order they are asked for', () => {
  fc.assert(
    fc.property(
      fc.array(fc.boolean(), { maxLength: 40 }),
      fc.array(fc.oneof(fc.nat(50), fc.constant(2 ** 53)), { maxLength: 30 }),
      (hidden, asked) => {
        let entries = NameMap.empty;
        for (const ino of hidden.keys()) entries = entries.set(`name ${String(ino).padStart(2, '0')}`, ino);
        const shown = [...entries].filter(([, ino]) => !hidden[ino]);
        const directory = new OpenDirectory(1, { uid: 1, gid: 1, pid: 1 }, new OpenFiles());
        directory.list(entries, (ino) => hidden[ino]!);
        for (const index of [...shown.keys(), ...asked]) assert.deepEqual(directory.at(index), shown[index]);
        directory.list(entries, undefined);
        for (const index of asked) assert.deepEqual(directory.at(index), [...entries][index]);
      },
    ),
  );
});
