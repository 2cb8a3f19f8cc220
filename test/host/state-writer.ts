/** Child of state.test.ts: commits for ever, telling each number after its commit is done, until it is killed. */
import { writeSync } from 'node:fs';
import { State } from '../../src/host/state.ts';
import { keptFor } from './kept-node.ts';

const state = new State(process.argv[2]!);
for (let revision = (state.restore()?.revision ?? 0) + 1; ; revision++) {
  const inos = [16 + (revision % 7), 32 + (revision % 5)];
  state.persist([
    {
      revision,
      nextIno: 1000 + revision,
      put: inos.map((ino) => keptFor(ino, revision)),
      remove: [64 + (revision % 3)],
    },
  ]);
  writeSync(1, `${revision}\n`);
}
