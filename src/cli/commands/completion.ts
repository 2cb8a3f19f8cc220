/** `porthole completion`. */
import { Argument, type Command } from 'commander';
import { command, type Shell } from '../command.ts';
import { completionScript, type ShellName, shells } from '../completion-scripts.ts';

export const completionCommands = (program: Command, { terminal }: Shell): void => {
  command(program, 'completion', 'print what a shell needs to complete command lines')
    .addArgument(new Argument('<shell>', 'your shell').choices(shells))
    .addHelpText(
      'after',
      `
It completes commands, options, names of virtual machines and images, and paths
of a tree. Load it in every new shell:

  bash  porthole completion bash > /etc/bash_completion.d/porthole
        or, in ~/.bashrc: source <(porthole completion bash)
  zsh   in ~/.zshrc, after compinit: source <(porthole completion zsh)
  fish  porthole completion fish > ~/.config/fish/completions/porthole.fish

Example:
  porthole completion bash`,
    )
    .action((shell: ShellName) => void terminal.out(completionScript(shell)));
};
