/** Starts the watcher of one boot as a process that outlives this one. */
import { readFileSync, writeFileSync } from 'node:fs';
import { commandOf, partEnvironment } from '../parts/index.ts';
import type { LastingProcess } from './process-identity.ts';
import type { Launcher } from './units.ts';
import type { WatcherConfig } from './watcher.ts';

export interface WatcherProcessOptions {
  readonly launcher: Launcher;
  readonly unit: string;
  readonly vm: string;
  readonly config: WatcherConfig;
  readonly configFile: string;
  readonly logFile: string;
  /** Program and arguments before the configuration file. Default: the watcher of this Porthole. */
  readonly command?: readonly [string, ...string[]] | undefined;
}

export function startWatcher(options: WatcherProcessOptions): Promise<LastingProcess> {
  const { launcher, unit, vm, config, configFile, logFile, command = commandOf('watcher') } = options;
  writeFileSync(configFile, JSON.stringify(config), { mode: 0o600 });
  return launcher.launch({
    name: unit,
    description: `Porthole: console and last words of VM ${vm}`,
    command: [...command, configFile],
    environment: partEnvironment(),
    limits: { memoryBytes: 256 * 1024 * 1024, processes: 32, openFiles: 256 },
    logFile,
  });
}

/** Where the watcher that was started last with that file keeps the console's log; undefined when the file does not say. */
export function watchedLog(configFile: string): string | undefined {
  try {
    return (JSON.parse(readFileSync(configFile, 'utf8')) as Partial<WatcherConfig>).consoleLog;
  } catch {
    return undefined;
  }
}
