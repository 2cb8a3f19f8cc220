/** `porthole key rotate`: other keys for what the store seals. */
import { resolve } from 'node:path';
import type { Command } from 'commander';
import { apiCommand, examples, printJson, type Shell } from '../command.ts';
import { finished } from '../operation.ts';

interface RotateFlags {
  readonly keyFile?: string;
  readonly json?: true;
}

/** @param key the group `key` */
export const keyRotateCommand = (key: Command, shell: Shell): void => {
  apiCommand(key, 'rotate', 'seal all that the store holds by a new key')
    .option('--key-file <file>', 'change the key file too: to this one on the host, made where there is none')
    .option('--json', 'print one JSON document')
    .addHelpText(
      'after',
      `
Values are sealed by a data key, and that one by the key file. Without
--key-file the data key is replaced: the old one is forgotten when all is sealed
anew. With it the daemon must be started with that file from now on, and backups
made before still need the old one. The daemon makes the file: under the systemd
unit that comes with it, it may write below /var/lib/porthole only, so move the
file where you want it afterwards.
${examples('porthole key rotate', 'porthole key rotate --key-file /var/lib/porthole/key-2')}`,
    )
    .action((flags: RotateFlags) => rotate(shell, flags));
};

const rotate = async ({ api: connect, terminal }: Shell, flags: RotateFlags): Promise<void> => {
  const api = connect();
  const keyFile = flags.keyFile === undefined ? undefined : resolve(flags.keyFile);
  const begun = await api.call('rotateKeys', { body: keyFile === undefined ? {} : { keyFile } });
  const operation = await finished(api, begun, terminal);
  if (flags.json === true) {
    printJson(terminal, operation);
    return;
  }
  terminal.out(`done: ${operation.step}\n`);
  if (keyFile === undefined) return;
  terminal.out(
    `the key file is now "${keyFile}": start the daemon with --key '${keyFile}' from now on, and keep a copy elsewhere;\nbackups made before need the old one\n`,
  );
};
