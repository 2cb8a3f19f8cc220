import assert from 'node:assert/strict';
import { chmodSync, mkdirSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { test } from 'node:test';
import { until } from '../until.ts';
import { porthole, type Stage, setStage, spec, withVm } from './stage.ts';

/** What may stand at the end of a command line, as the shells' scripts ask for it. */
const candidates = async (stage: Stage, line: string, environment = {}): Promise<string[]> => {
  const words = line.split(' ').slice(1);
  const { code, out, err } = await stage.runWith({ environment }, '__complete', ...words);
  assert.deepEqual([code, err], [0, '']);
  assert.ok(out.endsWith('\n'));
  return out
    .trimEnd()
    .split('\n')
    .map((text) => text.split('\t')[0]!);
};

test('porthole __complete answers from the tree of commands and from the API', async (t) => {
  const stage = await setStage(t);
  await withVm(stage, spec);
  const { api } = stage;
  await api.ask({ method: 'POST', path: '/v1/vms', body: { name: 'db-1', kind: 'attached' } });
  const expected: Readonly<Record<string, readonly string[]>> = {
    'porthole m': ['words', 'metadata', 'manager'],
    'porthole vm st': ['words', 'start', 'stop'],
    'porthole vm show ': ['words', 'db-1', 'web-1'],
    'porthole vm start web-1 ': ['words', 'db-1'],
    'porthole vm show --js': ['words', '--json'],
    'porthole vm ls --status=r': ['words', '--status=running'],
    'porthole vm ls --status st': ['words', 'starting', 'stopping', 'stopped'],
    'porthole vm create new --image ti': ['words', 'tiny:1'],
    'porthole vm create w': ['words'],
    'porthole vm create new --metadata ': ['files'],
    'porthole serve x --mount ': ['directories'],
    'porthole metadata get web-1 /s': ['partial', '/secrets/'],
    'porthole metadata get web-1 /secrets/': ['words', '/secrets/db'],
    'porthole audit --vm web-1 --path /inst': ['partial', '/instance/'],
    'porthole policy explain w': ['words', 'web-1'],
    'porthole policy explain ./w': ['files'],
    'porthole completion ': ['words', 'bash', 'zsh', 'fish'],
    'porthole nonsense ': ['words'],
  };
  const lines = Object.keys(expected);
  const found: string[][] = [];
  for (let i = 0; i < lines.length; i += 3)
    found.push(...(await Promise.all(lines.slice(i, i + 3).map((line) => candidates(stage, line)))));
  assert.deepEqual(Object.fromEntries(lines.map((line, i) => [line, found[i]])), expected);
  // Nobody is there, and nobody is told.
  const nobody = { PORTHOLE_API: 'unix:/nowhere' };
  assert.deepEqual(await candidates(stage, 'porthole vm show ', nobody), ['words']);
});

interface Shell {
  readonly name: 'bash' | 'zsh' | 'fish';
  readonly command: (home: string) => readonly string[];
  /** Files of its configuration, by their names in HOME. */
  readonly files: Readonly<Record<string, string>>;
}

const shells: readonly Shell[] = [
  {
    name: 'bash',
    command: (home) => ['bash', '--noprofile', '--rcfile', join(home, 'bashrc'), '-i'],
    files: { bashrc: "PS1='ready> '\nbind 'set bell-style none'\nsource <(porthole completion bash)\n" },
  },
  {
    name: 'zsh',
    command: () => ['zsh', '-i'],
    files: {
      '.zshrc':
        "PS1='ready> '\nsetopt no_beep\nautoload -Uz compinit && compinit -u\nsource <(porthole completion zsh)\n",
    },
  },
  {
    name: 'fish',
    command: () => ['fish', '--interactive'],
    files: {
      '.config/fish/config.fish':
        "function fish_prompt\n  echo -n 'ready> '\nend\nset fish_greeting\nporthole completion fish | source\n",
    },
  },
];

for (const { name, command, files } of shells) {
  test(`porthole completion ${name} completes commands, names, paths and files in ${name}`, async (t) => {
    const stage = await setStage(t);
    await withVm(stage, spec);
    const home = stage.api.directory;
    const bin = join(home, 'bin');
    mkdirSync(join(home, '.config', 'fish'), { recursive: true });
    mkdirSync(bin);
    writeFileSync(join(bin, 'porthole'), `#!/bin/sh\nexec ${porthole.join(' ')} "$@"\n`);
    chmodSync(join(bin, 'porthole'), 0o755);
    for (const [file, text] of Object.entries(files)) writeFileSync(join(home, file), text);
    writeFileSync(join(home, 'a-spec-file.yaml'), spec);
    const environment = { PATH: `${bin}:${stage.environment['PATH']}`, ZDOTDIR: home, TERM: 'dumb' };
    const shell = stage.shell({ environment }, ...command(home));
    await shell.says(/ready> /);
    /** Types, presses Tab, waits for what shall stand there then, and runs it. */
    const completes = async (typed: string, completed: RegExp, answer: RegExp): Promise<void> => {
      const before = shell.out().length;
      const since = (): string => shell.out().slice(before);
      shell.type(`${typed}\t`);
      let pressedMs = performance.now();
      const isCompleted = async (): Promise<boolean> => {
        // Completion gives up after a moment, as it should: then a person presses the key again.
        if (performance.now() - pressedMs > 8_000) {
          shell.type('\t');
          pressedMs = performance.now();
        }
        return completed.test(since());
      };
      await until(`${typed} to be completed`, isCompleted, 60_000);
      shell.type('\r');
      await until(`${typed} to be run`, async () => answer.test(since()), 60_000);
    };
    await completes('porthole stat', /porthole stat[^]*us/, /host: +host-1/);
    await completes('porthole vm show we', /we[^]*b-1/, /name: +web-1/);
    await completes('porthole metadata get web-1 /secrets/', /secrets\/[^]*db/, /hunter2|is a secret/);
    if (name === 'bash') {
      // ":" and "=" divide words there.
      shell.type('n\r');
      await completes('porthole vm ls --status=run', /run[^]*ning/, /NAME +STATUS/);
    } else shell.type('n\r');
    await completes('porthole policy check a-sp', /a-sp[^]*ec-file\.yaml/, /nothing wrong/);
    shell.type('exit\r');
    await shell.ended;
  });
}
