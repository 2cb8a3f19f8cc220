/** `porthole metadata watch`. */
import type { Command } from 'commander';
import { printable } from '../../wire/index.ts';
import { apiCommand, type Shell } from '../command.ts';
import { withVm } from '../near.ts';
import type { Commit } from '../shapes.ts';
import { breakWords, untilInterrupted } from './console.ts';
import { absolute } from './metadata.ts';

interface WatchFlags {
  readonly from?: string;
  readonly json?: true;
}

export const watchCommand = (metadata: Command, shell: Shell): void => {
  apiCommand(metadata, 'watch', 'print changes as they come, without values')
    .argument('<vm>', 'name of the virtual machine')
    .argument('[path]', 'what changes at it or below it', '/')
    .option('--from <revision>', 'what came after this revision; default: from now on')
    .option('--json', 'print JSON lines, one for each commit')
    .addHelpText(
      'after',
      `
Goes on until Ctrl-C. After a lost connection it goes on where it was, without
loss or repetition; where that cannot be, it fails and says so.

Examples:
  porthole metadata watch web-1 /guest
  porthole metadata watch web-1 --json --from 1.42`,
    )
    .action((vm: string, path: string, flags: WatchFlags) => watch(shell, vm, absolute(path), flags));
};

const watch = async (shell: Shell, vm: string, path: string, flags: WatchFlags): Promise<void> => {
  const { terminal } = shell;
  const api = shell.api();
  const query = { path, from: flags.from };
  await untilInterrupted(terminal, async () => {
    const events = await withVm(api, vm, () =>
      api.stream('watchMetadata', { params: { name: vm }, query, onBreak: breakWords(terminal) }),
    );
    let isFirst = true;
    for await (const { event, data } of events) {
      if (event === 'start' && isFirst && flags.json !== true)
        terminal.err(`following ${path} of ${vm} from revision ${(data as Commit).revision} on; Ctrl-C ends\n`);
      isFirst = false;
      if (event !== 'commit') continue;
      terminal.out(flags.json === true ? `${JSON.stringify(data)}\n` : words(data as Commit));
      await terminal.drained();
    }
  });
};

const words = ({ revision, policyChanged, changes }: Commit): string => {
  const lines = changes.map(({ path, what }) => `${revision}  ${what.padEnd(10)}  ${printable(path)}\n`);
  if (policyChanged) lines.unshift(`${revision}  policy\n`);
  return lines.join('');
};
