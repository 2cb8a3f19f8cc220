/** `porthole host token`: keys with which hosts enrol. */
import { rmSync, writeFileSync } from 'node:fs';
import type { Command } from 'commander';
import { moment, parseDuration } from '../amounts.ts';
import { apiCommand, examples, printJson, type Shell } from '../command.ts';

interface TokenFlags {
  readonly host?: string;
  readonly expires?: number;
  readonly out?: string;
  readonly json?: true;
}

export const joinKeyCommand = (host: Command, shell: Shell): void => {
  apiCommand(host, 'token', 'make a join key for one host, and print it this once')
    .option('--host <name>', 'good for a host of this name alone; default: for any')
    .option('--expires <duration>', 'good for so long, at most 7 days; default: 1 hour', parseDuration)
    .option('--out <file>', 'write it to this new file, for its owner only, instead of printing it')
    .option('--json', 'print one JSON document')
    .addHelpText(
      'after',
      `
Who has it can make a machine a host of the region, to which VMs and their
secrets are given: bring it there as you would a password.
${examples('porthole host token --host host-7 --out join.key')}`,
    )
    .action((flags: TokenFlags) => create(shell, flags));
};

const create = async ({ api: connect, terminal }: Shell, flags: TokenFlags): Promise<void> => {
  const { host, expires: expiresInSeconds, out } = flags;
  // Before there is a key: a file that is there already is not overwritten, and one that cannot be made loses none.
  if (out !== undefined) writeFileSync(out, '', { mode: 0o600, flag: 'wx' });
  const body = { ...(host !== undefined && { host }), ...(expiresInSeconds !== undefined && { expiresInSeconds }) };
  const { joinKey, text } = await connect()
    .call('createJoinKey', { body })
    .catch((error: unknown) => {
      if (out !== undefined) rmSync(out, { force: true });
      throw error;
    });
  if (out !== undefined) writeFileSync(out, `${text}\n`);
  if (flags.json === true) {
    printJson(terminal, out === undefined ? { joinKey, text } : { joinKey });
    return;
  }
  terminal.err(`good for one host, until ${moment(Date.parse(joinKey.expiresAt), terminal.wallMs())}\n`);
  if (out === undefined) terminal.out(`${text}\n`);
};
