/** The tree of commands. Building it runs nothing: help, manual pages and completion read it. */
import { Command, CommanderError } from 'commander';
import { thisVersion, versionText } from '../parts/index.ts';
import { apiOption, helpConfiguration, regionOption, type Shell } from './command.ts';
import { agentCommand } from './commands/agent.ts';
import { auditCommands } from './commands/audit.ts';
import { backupCommands } from './commands/backup.ts';
import { clusterCommands } from './commands/cluster.ts';
import { completionCommands } from './commands/completion.ts';
import { consoleCommands } from './commands/console.ts';
import { hostCommands } from './commands/host.ts';
import { imageCommands } from './commands/image.ts';
import { keyCommands } from './commands/key.ts';
import { keyRotateCommand } from './commands/key-rotate.ts';
import { managerCommands } from './commands/manager.ts';
import { metadataCommands } from './commands/metadata.ts';
import { policyCommands } from './commands/policy.ts';
import { serveCommands } from './commands/serve.ts';
import { storeCommands } from './commands/store.ts';
import { upCommands } from './commands/up.ts';
import { vmCommands } from './commands/vm.ts';
import { exitCodeHelp, exitCodes } from './exit-code.ts';

/** A new tree: a `Command` keeps what it parsed. */
export const buildProgram = (shell: Shell): Command => {
  const { terminal } = shell;
  const program = new Command('porthole')
    .description(
      "A directory with a virtual machine's metadata and secrets, answered and decided from outside the machine, by who asks.",
    )
    .option('--version', 'print the version and the commit it was built from')
    .addOption(apiOption())
    .addOption(regionOption())
    .helpOption('-h, --help', 'print this help')
    .configureHelp(helpConfiguration)
    .addHelpText('after', exitCodeHelp)
    .showSuggestionAfterError()
    .exitOverride()
    .configureOutput({
      writeOut: (text) => terminal.out(text),
      writeErr: (text) => terminal.err(text),
      outputError: (text, write) => write(text.replace(/^error: /, 'porthole: ')),
    })
    // Only then: from a checkout, git is asked.
    .on('option:version', () => {
      terminal.out(`${versionText(thisVersion())}\n`);
      throw new CommanderError(exitCodes.ok, 'commander.version', 'the version was printed');
    });
  program.commandsGroup('Virtual machines:');
  const vm = vmCommands(program, shell);
  consoleCommands(vm, shell);
  metadataCommands(program, shell);
  policyCommands(program, shell);
  auditCommands(program, shell);
  program.commandsGroup('The host:');
  upCommands(program, shell);
  hostCommands(program, shell);
  imageCommands(program, shell);
  keyRotateCommand(keyCommands(program, shell), shell);
  backupCommands(program, shell);
  storeCommands(program, shell);
  program.commandsGroup('The cluster:');
  managerCommands(program, shell);
  clusterCommands(program, shell);
  program.commandsGroup('A tree from a file, without the host daemon:');
  serveCommands(program, shell);
  program.commandsGroup('Inside a virtual machine:');
  agentCommand(program, shell);
  program.commandsGroup('Others:');
  completionCommands(program, shell);
  const help = new Command('help')
    .argument('[command...]')
    .description('print the help of a command')
    .helpOption(false);
  program.addHelpCommand(help.helpGroup('Others:'));
  return program;
};
