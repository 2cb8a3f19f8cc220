/** An audit record as a line of the log: a JSON object, its keys in the order of `docs/operations.md`. */
import type { AuditRecord } from '../tree/index.ts';

/** JSON leaves some control characters as they are, guests choose names, and people read logs on terminals. */
const unsafe = /[\u007F-\u009F\u2028-\u202E\u2066-\u2069]/g;
const quote = (text: string): string =>
  JSON.stringify(text).replaceAll(
    unsafe,
    (character) => String.raw`\u` + character.codePointAt(0)!.toString(16).padStart(4, '0'),
  );

/** Paths and rules come again and again. Forgotten all at once when there are too many. */
const quoted = new Map<string, string>();
const mostQuoted = 4096;
const quotedOnce = (text: string): string => {
  const known = quoted.get(text);
  if (known !== undefined) return known;
  if (quoted.size >= mostQuoted) quoted.clear();
  const fresh = quote(text);
  quoted.set(text, fresh);
  return fresh;
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
export const auditLine = (record: AuditRecord): string => {
  const { vm, way, operation, path, uid, gid, pid, program, revision, verdict, rule } = record;
  const { errno, dropped, droppedOthers } = record;
  let line = `{"time":"${timeStamp(record.timeMs)}","vm":${quotedOnce(vm)},"way":${quotedOnce(way)},"operation":${quotedOnce(operation)},"path":${quotedOnce(path)},"uid":${uid},"gid":${gid},"pid":${pid}`;
  if (program !== undefined) line += `,"program":${quotedOnce(program)}`;
  line += `,"revision":${revision},"verdict":"${verdict}","rule":${quotedOnce(rule)}`;
  if (errno !== undefined) line += `,"errno":${quotedOnce(errno)}`;
  if (dropped !== undefined) line += `,"dropped":${dropped}`;
  if (droppedOthers !== undefined) line += `,"droppedOthers":${droppedOthers}`;
  return `${line}}\n`;
};
