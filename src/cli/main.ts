/** The `porthole` command as a process. */
import { runCli } from './cli.ts';
import { processTerminal } from './process-terminal.ts';

process.exitCode = await runCli(process.argv.slice(2), processTerminal());
