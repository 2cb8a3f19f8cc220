/** Starts the watcher of one boot as a process that outlives this one. */
import { writeFileSync } from 'node:fs';
import { fileURLToPath } from 'node:url';
import type { LastingProcess } from './process-identity.ts';
import type { Launcher } from './units.ts';
import type { WatcherConfig } from './watcher.ts';

/** Compiled sources of this checkout, types stripped; Node goes on without it where it can't be written. */
const compileCache = fileURLToPath(new URL('../../.cache/compile', import.meta.url));

const defaultCommand = (): readonly [string, ...string[]] => [
  process.execPath,
  '--disable-warning=ExperimentalWarning',
  '--max-semi-space-size=1',
  '--max-old-space-size=32',
  '--v8-pool-size=1',
  fileURLToPath(new URL('watcher-main.ts', import.meta.url)),
];

export interface WatcherProcessOptions {
  readonly launcher: Launcher;
  readonly unit: string;
  readonly vm: string;
  readonly config: WatcherConfig;
  readonly configFile: string;
  readonly logFile: string;
  /** Program and arguments before the configuration file. Default: the watcher of this checkout under this Node. */
  readonly command?: readonly [string, ...string[]] | undefined;
}

export function startWatcher(options: WatcherProcessOptions): Promise<LastingProcess> {
  const { launcher, unit, vm, config, configFile, logFile, command = defaultCommand() } = options;
  writeFileSync(configFile, JSON.stringify(config), { mode: 0o600 });
  return launcher.launch({
    name: unit,
    description: `Porthole: console and last words of VM ${vm}`,
    command: [...command, configFile],
    environment: { NODE_COMPILE_CACHE: compileCache },
    limits: { memoryBytes: 256 * 1024 * 1024, processes: 32, openFiles: 256 },
    logFile,
  });
}
