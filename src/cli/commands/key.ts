/** `porthole key`: keys of the API. */
import { writeFileSync } from 'node:fs';
import { type Command, Option } from 'commander';
import { roles } from '../../records/index.ts';
import { ago, moment, parseDuration } from '../amounts.ts';
import { apiCommand, collect, examples, group, printJson, type Shell } from '../command.ts';
import type { Key } from '../shapes.ts';
import { table } from '../table.ts';
import { paintFor } from '../terminal.ts';

interface CreateFlags {
  readonly role: (typeof roles)[number];
  readonly expires?: number;
  readonly out?: string;
  readonly account?: string;
  readonly vm?: readonly string[];
  readonly vmPrefix?: readonly string[];
  readonly json?: true;
}

interface ListFlags {
  readonly account?: string;
  readonly json?: true;
}

const accountOption = (): Option => new Option('--account <account>', 'of this account; default: your own');

/** @returns the group, for what others add to it */
export const keyCommands = (program: Command, shell: Shell): Command => {
  const key = group(program, 'key', 'create, list and revoke keys of the API');

  apiCommand(key, 'create', 'create a key, and print it this once')
    .argument('<name>', 'what it is for, in words')
    .addOption(
      new Option(
        '--role <role>',
        'viewer: reads what is no secret; operator: all of the VMs; admin: images and keys too',
      )
        .choices(roles)
        .makeOptionMandatory(),
    )
    .option('--expires <duration>', 'valid for so long, as "12h" or "90d"; default: until it is revoked', parseDuration)
    .option('--vm <name>', 'for this virtual machine only (any number of times)', collect)
    .option('--vm-prefix <text>', 'for those only whose names begin so (any number of times)', collect)
    .addOption(accountOption())
    .option('--out <file>', 'write it to this new file, for its owner only, instead of printing it')
    .option('--json', 'print one JSON document')
    .addHelpText(
      'after',
      `
To use it elsewhere, put it into a file with mode 0600 and name that file in
PORTHOLE_KEY_FILE, or in ~/.config/porthole/config.yaml, with mode 0600 too:

  api: https://porthole.example:8443
  keyFile: key

Example:
  porthole key create CI --role operator --vm-prefix web- --out ci.key`,
    )
    .action((name: string, flags: CreateFlags) => create(shell, name, flags));

  apiCommand(key, 'ls', 'list keys, without their secrets')
    .addOption(accountOption())
    .option('--json', 'print one JSON document')
    .addHelpText('after', examples('porthole key ls'))
    .action((flags: ListFlags) => list(shell, flags));

  apiCommand(key, 'rm', 'revoke keys: they end at once, and what they have open')
    .argument('<id...>', 'ids, as "porthole key ls" lists them')
    .addOption(accountOption())
    .addHelpText('after', examples('porthole key rm 0123456789abcdef'))
    .action(async (ids: readonly string[], { account }: ListFlags) => {
      const api = shell.api();
      for (const id of ids) await api.call('revokeKey', { params: { id }, query: { account } });
    });
  return key;
};

const create = async ({ api: connect, terminal }: Shell, name: string, flags: CreateFlags): Promise<void> => {
  const { role, expires, out, account, vm: names = [], vmPrefix: prefixes = [] } = flags;
  const isScoped = names.length + prefixes.length > 0;
  // Before there is a key: a file that is there already is not overwritten, and one that cannot be made loses none.
  if (out !== undefined) writeFileSync(out, '', { mode: 0o600, flag: 'wx' });
  const wanted = {
    name,
    role,
    ...(expires !== undefined && { expiresInSeconds: expires }),
    ...(account !== undefined && { account }),
    ...(isScoped && { vms: { names: [...names], prefixes: [...prefixes] } }),
  };
  const { key, text } = await connect().call('createKey', { body: wanted });
  if (out !== undefined) writeFileSync(out, `${text}\n`);
  if (flags.json === true) printJson(terminal, out === undefined ? { key, text } : { key });
  else if (out === undefined) {
    terminal.err('the key, which is told this once:\n');
    terminal.out(`${text}\n`);
  }
};

/** Of a key for certain machines, which these are. */
const roleWords = ({ role, vms }: Key): string =>
  vms === undefined ? role : `${role} of ${[...vms.names, ...vms.prefixes.map((one) => `${one}*`)].join(',')}`;

const list = async ({ api: connect, terminal }: Shell, flags: ListFlags): Promise<void> => {
  const { keys } = await connect().call('listKeys', { query: { account: flags.account } });
  if (flags.json === true) {
    printJson(terminal, keys);
    return;
  }
  if (keys.length === 0) {
    terminal.err('no keys yet; on this machine none is needed, and "porthole key create" makes one for others\n');
    return;
  }
  const nowMs = terminal.wallMs();
  const columns = [
    { title: 'ID', cell: ({ id }: Key) => id },
    { title: 'ROLE', cell: roleWords },
    {
      title: 'EXPIRES',
      cell: ({ expiresAt }: Key) => (expiresAt === undefined ? 'never' : moment(Date.parse(expiresAt), nowMs)),
    },
    { title: 'AGE', cell: ({ createdAt }: Key) => ago(Date.parse(createdAt), nowMs) },
    { title: 'NAME', cell: ({ name }: Key) => name },
  ];
  terminal.out(table(columns, keys, paintFor(terminal, 'out').dim));
};
