/** `porthole store`: stores as a whole, while no daemon uses them. */
import { existsSync } from 'node:fs';
import { join, resolve } from 'node:path';
import type { Command } from 'commander';
import {
  copyStores,
  createKeyFile,
  type EtcdStoresOptions,
  openEtcdStores,
  openStores,
  raiseEtcdEpoch,
  StoreError,
  type Stores,
} from '../../store/index.ts';
import { command, examples, group, printJson, type Shell } from '../command.ts';
import { Progress } from '../progress.ts';
import { claimant } from '../store-claim.ts';
import { etcdAccessOptions, etcdOptions, type StoreFlags } from '../store-flags.ts';
import { UsageError } from '../usage-error.ts';

interface CopyFlags extends StoreFlags {
  readonly from: string;
  readonly to: string;
  readonly key?: string;
  readonly json?: true;
}

interface EtcdFlags extends StoreFlags {
  readonly store: string;
  readonly key: string;
  readonly json?: true;
}

interface RotateFlags extends EtcdFlags {
  readonly keyFile?: string;
}

export const storeCommands = (program: Command, shell: Shell): void => {
  const store = group(program, 'store', 'move what a host keeps to etcd, and look after it there');

  etcdAccessOptions(command(store, 'copy', 'copy the stores of a state directory into an etcd'))
    .requiredOption('--from <sqlite:directory>', 'state directory of a host daemon, which must not run')
    .requiredOption('--to <url>', 'etcd://HOST:PORT,HOST:PORT[/PREFIX], with nothing below the prefix')
    .option('--key <file>', 'the key that opens both (default: "key" in --from)')
    .option('--json', 'print one JSON document')
    .addHelpText(
      'after',
      `
All keys and values are copied and read back; revisions start anew, so what
clients remember of them is refused. The key file stays the one it was. Disks,
images, logs and audit records are not in the store: "porthole up" goes on with
the same --state. An interrupted copy must be emptied before it is made again:
  etcdctl del --prefix PREFIX/
${examples('porthole store copy --from sqlite:/var/lib/porthole --to etcd://127.0.0.1')}`,
    )
    .action((flags: CopyFlags) => copy(shell, flags));

  etcdCommand(store, 'rotate', 'seal all values in an etcd anew by another data key')
    .option('--key-file <file>', 'change the key file too: to this one, made where there is none')
    .addHelpText(
      'after',
      `
Stop every daemon that uses the store first: each value is put again, and who
remembers its revision takes that for somebody else's change. When it is
interrupted, the next rotation does the rest. After --key-file, every daemon
needs --key with the new file.
${examples('porthole store rotate --store etcd://127.0.0.1:2379', 'porthole store rotate --store etcd://127.0.0.1:2379 --key-file /root/key-2')}`,
    )
    .action((flags: RotateFlags) => rotate(shell, flags));

  etcdCommand(store, 'restored', 'say that a snapshot of etcd was restored')
    .addHelpText(
      'after',
      `
To be run once after "etcdctl snapshot restore", before the first daemon starts:
revisions of the time before could else be taken for those of the new one.
${examples('porthole store restored --store etcd://127.0.0.1:2379')}`,
    )
    .action((flags: EtcdFlags) => restored(shell, flags));
};

const etcdCommand = (store: Command, name: string, does: string): Command =>
  etcdAccessOptions(
    command(store, name, does)
      .requiredOption('--store <url>', 'etcd://HOST:PORT,HOST:PORT[/PREFIX]')
      .option('--key <file>', 'the key that opens the store', '/var/lib/porthole/key'),
  ).option('--json', 'print one JSON document');

const copy = async ({ terminal }: Shell, flags: CopyFlags): Promise<void> => {
  const [, state] = /^sqlite:(.+)$/.exec(flags.from) ?? [];
  if (state === undefined) throw new UsageError('--from names a state directory: write sqlite:DIRECTORY');
  const keyFile = resolve(flags.key ?? join(state, 'key'));
  const options = { ...etcdOptions(flags.to, flags), keyFile };
  await using from = await openStores({ directory: resolve(state, 'store'), keyFile, mustExist: true });
  {
    await using empty = await openEtcdStores(options);
    for (const [url, target] of [
      [flags.to, empty.region],
      [flags.globalStore ?? flags.to, empty.global],
    ] as const) {
      const { count } = await target.count({ start: '' });
      if (count > 0) throw new StoreError('STORE_EXISTS', `"${url}" has ${count} keys already; give another prefix`);
    }
  }
  // What the copied records say of revisions is of the old store.
  const epoch = await raiseEtcdEpoch(options);
  await using to = await openEtcdStores(options);
  const progress = new Progress(terminal, `copy to ${flags.to}`, 'steps');
  try {
    const { keys, digest } = await copyStores(from, to, {
      signal: terminal.interrupted,
      onProgress: (done, total) => progress.tell({ step: '', done, total }),
    });
    progress.end();
    if (flags.json === true) printJson(terminal, { keys, digest, epoch });
    else
      terminal.out(
        `${keys} keys copied and read back, SHA-256 ${digest}, as epoch ${epoch}\nnext: porthole up --state '${state}' --store ${flags.to}${flags.globalStore === undefined ? '' : ` --global-store ${flags.globalStore}`}\n`,
      );
  } finally {
    progress.end();
  }
};

/** Of stores that are there. Error in words: a daemon uses them. */
const openUnused = async (options: EtcdStoresOptions): Promise<Stores> => {
  const stores = await openEtcdStores({ ...options, mustExist: true });
  try {
    const who = await claimant(stores.region);
    if (who === undefined) return stores;
    throw new Error(
      `${who}; stop every daemon first. What one that is gone, or a snapshot, has left there of that ends within 30 s`,
    );
  } catch (error) {
    await stores.close();
    throw error;
  }
};

const existing = (flags: EtcdFlags): EtcdStoresOptions => ({
  ...etcdOptions(flags.store, flags),
  keyFile: resolve(flags.key),
});

const rotate = async ({ terminal }: Shell, flags: RotateFlags): Promise<void> => {
  await using stores = await openUnused(existing(flags));
  const keyFile = flags.keyFile === undefined ? undefined : resolve(flags.keyFile);
  if (keyFile !== undefined) {
    if (!existsSync(keyFile)) createKeyFile(keyFile);
    await stores.changeKeyFile(keyFile);
  }
  const progress = new Progress(terminal, 'sealing anew', 'steps');
  try {
    const sealed = await stores.rotateDataKey({
      signal: terminal.interrupted,
      onProgress: (done, total) => progress.tell({ step: '', done, total }),
    });
    progress.end();
    if (flags.json === true) printJson(terminal, { sealed });
    else terminal.out(`${sealed} values sealed anew\n`);
    if (keyFile !== undefined)
      terminal.err(
        `the key file is now "${keyFile}": start the daemon with --key '${keyFile}' from now on, and keep a copy elsewhere;\nsnapshots made before need the old one\n`,
      );
  } finally {
    progress.end();
  }
};

const restored = async ({ terminal }: Shell, flags: EtcdFlags): Promise<void> => {
  const options = existing(flags);
  await (await openUnused(options)).close();
  const epoch = await raiseEtcdEpoch(options);
  if (flags.json === true) printJson(terminal, { epoch });
  else terminal.out(`epoch ${epoch}: revisions of before are refused from now on; start the daemons\n`);
};
