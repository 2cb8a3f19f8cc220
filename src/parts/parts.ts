/** The parts of Porthole that run as processes and threads of their own, and how each is started. */

/** A request allocates next to nothing there, so a small nursery and one helper thread do: 7 MB less for each VM. */
const small = ['--max-semi-space-size=1', '--v8-pool-size=1'] as const;

interface ProcessPart {
  /** Its entry under src/. */
  readonly file: string;
  /** Flags of V8 and Node that it is started with. */
  readonly flags: readonly string[];
}

/** Another part is another row here; the build takes it from here too. */
export const processParts = {
  device: { file: 'device/main.ts', flags: small },
  watcher: { file: 'qemu/watcher-main.ts', flags: [...small, '--max-old-space-size=32'] },
  guard: { file: 'qemu/guard-main.ts', flags: [...small, '--max-old-space-size=32'] },
  keeper: { file: 'device/keeper-main.ts', flags: small },
} as const satisfies Record<string, ProcessPart>;

export const threadParts = {
  'sqlite-worker': { file: 'store/sqlite-worker.ts' },
  'spec-thread': { file: 'host/spec-thread.ts' },
} as const satisfies Record<string, { readonly file: string }>;

/** The `porthole` command itself: what the executable runs when it is asked for no part. */
export const commandPart = { name: 'porthole', file: 'cli/main.ts', flags: [] } as const;

/** The agent, as an executable of its own. */
export const agentPart = { name: 'porthole-agent', file: 'agent/main.ts', flags: small } as const;

export type ProcessPartName = keyof typeof processParts;
export type ThreadPartName = keyof typeof threadParts;
