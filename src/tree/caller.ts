/** Who asks, and by which way in. */

/**
 * The caller of one operation. The guest's kernel vouches for uid, gid and pid; only an agent can prove the rest.
 * Protocols reuse one object for every request: whoever keeps a caller copies it.
 */
export interface Caller {
  readonly uid: number;
  readonly gid: number;
  /** Thread id in the guest, 0 if unknown. Advisory: pids are reused. */
  readonly pid: number;
  /** Supplementary groups, where the way in knows them. */
  readonly groups?: readonly number[] | undefined;
  /** Absolute path of the executable, where the way in proves it. */
  readonly program?: string | undefined;
  /** Name of the systemd unit, where the way in proves it. */
  readonly unit?: string | undefined;
}

/** What a way in can and can't prove; fixed for the life of a `FileSystem`. */
export interface Way {
  readonly name: 'direct' | 'virtiofs' | 'mount' | '9p' | 'agent' | 'facade';
  /**
   * The guest's kernel has checked the shown mode and ACL before we are asked (`default_permissions`), and vouches for
   * membership in groups that the policy lists no members of.
   */
  readonly kernelChecks: boolean;
  readonly provesProgram: boolean;
  readonly provesUnit: boolean;
  /** How long a reader of `/.changes` waits at most before it gets a heartbeat line. */
  readonly heartbeatMs: number;
}

/** The ways in that there are. */
export const ways = {
  direct: { name: 'direct', kernelChecks: false, provesProgram: true, provesUnit: true, heartbeatMs: 30_000 },
  virtiofs: { name: 'virtiofs', kernelChecks: true, provesProgram: false, provesUnit: false, heartbeatMs: 2_000 },
  /** 9P2000.L: nobody has checked anything before us, whatever `access=` a client was mounted with. */
  ninep: { name: '9p', kernelChecks: false, provesProgram: false, provesUnit: false, heartbeatMs: 30_000 },
  mount: { name: 'mount', kernelChecks: false, provesProgram: false, provesUnit: false, heartbeatMs: 30_000 },
  /** A process in the guest that has this boot's token. It reads groups, program and unit from `/proc`; nobody checks before us. */
  agent: { name: 'agent', kernelChecks: false, provesProgram: true, provesUnit: true, heartbeatMs: 30_000 },
  /** A cloud's metadata API: nobody says who asks. */
  facade: { name: 'facade', kernelChecks: false, provesProgram: false, provesUnit: false, heartbeatMs: 30_000 },
} as const satisfies Record<string, Way>;
