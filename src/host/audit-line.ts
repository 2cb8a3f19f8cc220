/** An audit record as a line of the log: a JSON object, its keys in the order of `docs/operations.md`. */
import type { AuditRecord } from '../tree/index.ts';

/** What of a record is text, which comes again and again. */
export type RecordTexts = Pick<
  AuditRecord,
  'vm' | 'way' | 'operation' | 'path' | 'program' | 'by' | 'verdict' | 'rule' | 'errno'
>;
/** What of it is numbers, each record's own. */
export type RecordNumbers = Omit<AuditRecord, keyof RecordTexts>;

/** The texts as they stand in a line, before, between and after the numbers. */
export interface LineParts {
  readonly untilUid: string;
  /** And who asked, where that is no program. */
  readonly program: string;
  readonly untilDropped: string;
}

/** JSON leaves some control characters as they are, guests choose names, and people read logs on terminals. */
const unsafe = /[\u007F-\u009F\u2028-\u202E\u2066-\u2069]/g;
export const quote = (text: string): string =>
  JSON.stringify(text).replaceAll(
    unsafe,
    (character) => String.raw`\u` + character.codePointAt(0)!.toString(16).padStart(4, '0'),
  );

export const lineParts = (texts: RecordTexts): LineParts => {
  const { vm, way, operation, path, program, by, verdict, rule, errno } = texts;
  return {
    untilUid: `,"vm":${quote(vm)},"way":${quote(way)},"operation":${quote(operation)},"path":${quote(path)},"uid":`,
    program:
      (program === undefined ? '' : `,"program":${quote(program)}`) + (by === undefined ? '' : `,"by":${quote(by)}`),
    untilDropped: `,"verdict":"${verdict}","rule":${quote(rule)}${errno === undefined ? '' : `,"errno":${quote(errno)}`}`,
  };
};

let stampMs = Number.NaN;
let stamp = '';
/** ISO 8601 with milliseconds, UTC. Many records have the same. */
const timeStamp = (ms: number): string => {
  if (ms === stampMs) return stamp;
  stampMs = ms;
  stamp = new Date(ms).toISOString();
  return stamp;
};

/** With the line feed at its end, and no other in it. The same record always gives the same bytes. */
export const lineOf = (parts: LineParts, numbers: RecordNumbers): string => {
  const { timeMs, uid, gid, pid, revision, dropped, droppedOthers } = numbers;
  let line = `{"time":"${timeStamp(timeMs)}"${parts.untilUid}${uid},"gid":${gid},"pid":${pid}${parts.program},"revision":${revision}${parts.untilDropped}`;
  if (dropped !== undefined) line += `,"dropped":${dropped}`;
  if (droppedOthers !== undefined) line += `,"droppedOthers":${droppedOthers}`;
  return `${line}}\n`;
};

/** `lineOf` for a record whose texts are not known yet. */
export const auditLine = (record: AuditRecord): string => lineOf(lineParts(record), record);
