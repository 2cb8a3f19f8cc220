/** What the audit log keeps of one decision. Never a value. */
export interface AuditRecord {
  /** Whole milliseconds since 1970. */
  readonly timeMs: number;
  readonly vm: string;
  readonly way: string;
  readonly operation: string;
  readonly path: string;
  readonly uid: number;
  readonly gid: number;
  readonly pid: number;
  readonly program?: string | undefined;
  /** Who asked from outside the machine: then uid, gid and pid are nobody's. */
  readonly by?: string | undefined;
  readonly revision: number;
  readonly verdict: 'allowed' | 'denied';
  /** The rule that decided: its glob and source, or `default`. */
  readonly rule: string;
  /** Name of the errno of a denial. */
  readonly errno?: string | undefined;
  /** How many denials of this uid and rule were not recorded since the last that was. */
  readonly dropped?: number | undefined;
  /**
   * How many denials of other uids and rules were not recorded and are in nobody's `dropped`, since the last record that
   * says so: a guest that goes through more uids than can be remembered.
   */
  readonly droppedOthers?: number | undefined;
}

/** Takes records; false when it can't keep them now, and then a read of what is not world-readable is refused with EIO. */
export type AuditSink = (record: AuditRecord) => boolean;
