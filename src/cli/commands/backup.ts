/** `porthole backup` and `porthole restore`: the host's stores in one file, and back. */
import { join, resolve } from 'node:path';
import type { Command } from 'commander';
import { restoreStores, StoreError } from '../../store/index.ts';
import { size } from '../amounts.ts';
import { apiCommand, command, examples, printJson, type Shell } from '../command.ts';
import { writeNewFile } from '../new-file.ts';
import { Progress } from '../progress.ts';

interface RestoreFlags {
  readonly state: string;
  readonly key?: string;
  readonly json?: true;
}

const notInIt = 'disks, images, console logs, audit records and the key file are not in it';

export const backupCommands = (program: Command, shell: Shell): void => {
  apiCommand(program, 'backup', 'write a backup of what the host keeps, while it runs')
    .argument('<file>', 'a new file, for its owner only')
    .option('--json', 'print one JSON document')
    .addHelpText(
      'after',
      `
A backup holds VMs and their settings, trees with all values, policies, keys of
the API and operations, as they are at one moment, sealed as they are in the
store. Disks, images, console logs and audit records are not in it, nor is the
key file, without which it can never be read: keep a copy of that elsewhere.
${examples('porthole backup /srv/backup/porthole-monday')}`,
    )
    .action((file: string, flags: { readonly json?: true }) => backup(shell, file, flags));

  command(program, 'restore', 'put a backup in the place of what the host keeps')
    .argument('<file>', 'what "porthole backup" wrote')
    .option('--state <directory>', 'state directory of the host daemon, which must not run', '/var/lib/porthole')
    .option('--key <file>', 'the key file of the time of the backup (default: "key" in --state)')
    .option('--json', 'print one JSON document')
    .addHelpText(
      'after',
      `
The backup is checked to its last value before anything is replaced, and what
it replaces is kept beside it. All revisions are higher afterwards than any that
were given out before: what clients remember of the time before is refused.
Keys of the API that were revoked since the backup are valid again.
${examples('porthole restore /srv/backup/porthole-monday', 'porthole restore FILE --state /srv/porthole --key /root/porthole.key')}`,
    )
    .action((file: string, flags: RestoreFlags) => restore(shell, file, flags));
};

const backup = async (
  { api: connect, terminal }: Shell,
  name: string,
  flags: { readonly json?: true },
): Promise<void> => {
  const file = resolve(name);
  const progress = new Progress(terminal, `backup to ${name}`, 'bytes');
  let bytes = 0;
  try {
    await writeNewFile(file, async (write) => {
      const api = connect();
      await api.download('createBackup', {
        each: async (chunk, total) => {
          await write(chunk);
          bytes += chunk.length;
          progress.tell({ step: '', done: bytes, total });
        },
      });
    });
  } finally {
    progress.end();
  }
  if (flags.json === true) printJson(terminal, { file, sizeBytes: bytes });
  else terminal.out(`${size(bytes)} in "${file}"; ${notInIt}\n`);
};

const restore = async ({ terminal }: Shell, name: string, flags: RestoreFlags): Promise<void> => {
  const state = resolve(flags.state);
  const keyFile = resolve(flags.key ?? join(state, 'key'));
  const backupFile = resolve(name);
  const { epoch, replaced } = restored(backupFile, state, keyFile, flags.key !== undefined);
  if (flags.json === true) printJson(terminal, { state, epoch, replaced: replaced ?? null });
  else terminal.out(restoredWords({ state, epoch, replaced, keyFile: flags.key === undefined ? undefined : keyFile }));
};

const restored = (
  backup: string,
  state: string,
  keyFile: string,
  isKeyGiven: boolean,
): ReturnType<typeof restoreStores> => {
  try {
    return restoreStores({ backup, directory: join(state, 'store'), keyFile });
  } catch (error) {
    throw error instanceof StoreError ? inWords(error, state, isKeyGiven) : error;
  }
};

const inWords = (error: StoreError, state: string, isKeyGiven: boolean): Error => {
  switch (error.code) {
    case 'STORE_LOCKED':
      return new Error(
        `a host daemon uses "${state}": stop it first ("systemctl stop porthole"); VMs go on meanwhile`,
        {
          cause: error,
        },
      );
    case 'STORE_KEY_MISSING':
      return new Error(
        `${error.message}${isKeyGiven ? '' : '. If it is elsewhere, name it with --key'}; nothing was changed`,
        { cause: error },
      );
    case 'STORE_FULL':
      return new Error(`${error.message}; nothing was changed`, { cause: error });
    default:
      return error;
  }
};

interface RestoredWords {
  readonly state: string;
  readonly epoch: number;
  readonly replaced: string | undefined;
  /** Where it is not the usual one. */
  readonly keyFile: string | undefined;
}

const restoredWords = ({ state, epoch, replaced, keyFile }: RestoredWords): string => {
  const up = [
    'porthole up',
    ...(state === '/var/lib/porthole' ? [] : [`--state '${state}'`]),
    ...(keyFile === undefined ? [] : [`--key '${keyFile}'`]),
  ].join(' ');
  const lines = [
    `restored into "${state}", as epoch ${epoch}`,
    replaced === undefined
      ? 'there was no store before'
      : `the store that was there is now "${replaced}"; remove it when it is not needed any more`,
    notInIt,
    'look at "porthole key ls": keys that were revoked since the backup are valid again',
    `next: ${up}`,
  ];
  return `${lines.join('\n')}\n`;
};
