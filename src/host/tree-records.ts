/**
 * How one tree lies in a store, below `tree/VMID/`:
 *
 * | key | |
 * |---|---|
 * | `head` | counters, and whether a log is to be rolled forward; every transaction has a condition on it |
 * | `node/INO` | a node, with its value up to `inlineBytes` |
 * | `value/INO/PART` | a longer value, in parts |
 * | `policy/PART` | the policy |
 * | `applied/HOLDER` | the last mutations of a holder that took effect |
 * | `answered/REVISION` | requests from outside that changed the tree, and what they were answered; of one batch |
 * | `burned/HOLDER/SEQUENCE/PART` | the value that one of them released |
 * | `history` | the newest commits, for watchers, as an orderly end left them |
 * | `log/GENERATION/SERIAL/PART` | changes that do not fit into one transaction |
 *
 * INO, PART, REVISION, SEQUENCE, GENERATION and SERIAL are hexadecimal of fixed width. The records' fields are the format: one may be
 * added, none may change its meaning.
 */
import { Buffer } from 'node:buffer';
import { decode, encode } from '@msgpack/msgpack';
import * as z from 'zod';
import type { Answered, Applied, PolicySpec } from '../tree/index.ts';
import { inoKey, whole } from './node-record.ts';

/** Longer values are not in the node's record. */
export const inlineBytes = 4 * 1024;
export const partBytes = 256 * 1024;

const hex = (value: number): string => value.toString(16).padStart(14, '0');
const partKey = (part: number): string => part.toString(16).padStart(4, '0');

/** The keys of one tree. */
export class TreeKeys {
  readonly prefix: string;
  readonly head: string;
  readonly log: string;
  readonly history: string;

  /** TypeError for an id that would not stay in its place. */
  constructor(vmId: string) {
    if (!/^[A-Za-z0-9][A-Za-z0-9._-]{0,99}$/.test(vmId))
      throw new TypeError(`"${vmId}" cannot be the id of a VM; use letters, digits, ".", "_" and "-"`);
    this.prefix = `tree/${vmId}/`;
    this.head = `${this.prefix}head`;
    this.log = `${this.prefix}log/`;
    this.history = `${this.prefix}history`;
  }

  node = (ino: number): string => `${this.prefix}node/${inoKey(ino)}`;
  value = (ino: number, part: number): string => `${this.prefix}value/${inoKey(ino)}/${partKey(part)}`;
  policy = (part: number): string => `${this.prefix}policy/${partKey(part)}`;
  applied = (holder: string): string => `${this.prefix}applied/${encodeURIComponent(holder)}`;
  answered = (revision: number): string => `${this.prefix}answered/${hex(revision)}`;
  burned = (holder: string, sequence: number, part: number): string =>
    `${this.prefix}burned/${encodeURIComponent(holder)}/${hex(sequence)}/${partKey(part)}`;
  logPart = ({ generation, serial }: LogName, part: number): string =>
    `${this.log}${hex(generation)}/${hex(serial)}/${partKey(part)}`;
}

/** Of a log; no two of a tree have the same. */
export interface LogName {
  readonly generation: number;
  readonly serial: number;
}

/** What a key is set to; undefined deletes it. */
export type Changes = Map<string, Uint8Array | undefined>;

export const partsOf = (bytes: Uint8Array): number => Math.ceil(bytes.length / partBytes);

/** Puts the bytes in parts, and deletes what there was of more than that. @returns how many parts */
export const putParts = (
  changes: Changes,
  keyOf: (part: number) => string,
  bytes: Uint8Array | undefined,
  partsBefore: number,
): number => {
  const parts = bytes === undefined ? 0 : partsOf(bytes);
  for (let part = 0; part < parts; part++)
    changes.set(keyOf(part), bytes!.subarray(part * partBytes, (part + 1) * partBytes));
  for (let part = parts; part < partsBefore; part++) changes.set(keyOf(part), undefined);
  return parts;
};

/** RangeError when a part is missing. */
export const takeParts = (
  entries: ReadonlyMap<string, Uint8Array>,
  keyOf: (part: number) => string,
  parts: number,
): Uint8Array => {
  const found: Uint8Array[] = [];
  for (let part = 0; part < parts; part++) {
    const bytes = entries.get(keyOf(part));
    if (bytes === undefined) throw new RangeError(`part ${part} of ${parts} is missing`);
    found.push(bytes);
  }
  // A copy that is no view of a pool: it lives as long as the node does.
  const all = new Uint8Array(found.reduce((sum, { length }) => sum + length, 0));
  let at = 0;
  for (const bytes of found) {
    all.set(bytes, at);
    at += bytes.length;
  }
  return all;
};

export const headFormat = 1;
const headRecord = z.object({
  format: z.int().min(1),
  /** At least the tree's: they may be given out up to here without another transaction. */
  revision: whole,
  nextIno: whole,
  /** Of the store, when the tree was last opened. */
  epoch: whole,
  /** How often the tree was opened. */
  generation: whole,
  policyRevision: whole,
  policyParts: whole,
  /** A log whose changes are the tree's already. */
  log: z.object({ generation: whole, serial: whole, parts: z.int().min(1) }).optional(),
});
export type Head = Readonly<z.infer<typeof headRecord>>;

export const encodeHead = (head: Head): Uint8Array => encode(head, { ignoreUndefined: true });
export const decodeHead = (bytes: Uint8Array): Head => headRecord.parse(decode(bytes));

/** As `PolicySpec`; what a rule says is checked where it comes from, and sealed since. */
const policyRecord = z.looseObject({
  rules: z.array(z.looseObject({ path: z.string() })),
  users: z.record(z.string(), whole),
  groups: z.record(z.string(), z.looseObject({ gid: whole })),
  quota: z.object({ bytes: whole, nodes: whole }),
  ninepMountUid: whole.optional(),
});
export const encodePolicy = (policy: PolicySpec): Uint8Array => Buffer.from(JSON.stringify(policy));
export const decodePolicy = (bytes: Uint8Array): PolicySpec => {
  const policy: unknown = JSON.parse(Buffer.from(bytes).toString());
  policyRecord.parse(policy);
  return policy as PolicySpec;
};

/** `burnedParts` 0: it released no value. */
export interface AppliedEntry extends Omit<Applied, 'holder'> {
  readonly burnedParts: number;
}
const appliedRecord = z.array(z.tuple([whole, whole, whole, whole]));

export const encodeApplied = (entries: readonly AppliedEntry[]): Uint8Array =>
  encode(
    entries.map(({ sequence, outcome, burnedParts }): z.infer<typeof appliedRecord>[number] => [
      sequence,
      outcome.revision,
      outcome.ino,
      burnedParts,
    ]),
  );
/** The outcomes are without what was burned. */
export const decodeApplied = (bytes: Uint8Array): AppliedEntry[] =>
  appliedRecord.parse(decode(bytes)).map(([sequence, revision, ino, burnedParts]) => ({
    sequence,
    outcome: { errno: 0, revision, ino },
    burnedParts,
  }));

const answeredRecord = z.array(
  z.object({ id: z.string(), revision: whole, changes: whole, policyRevision: whole, dataRevision: whole.optional() }),
);
export const encodeAnswered = (answered: readonly Answered[]): Uint8Array =>
  encode(answered, { ignoreUndefined: true });
export const decodeAnswered = (bytes: Uint8Array): Answered[] =>
  answeredRecord.parse(decode(bytes)).map(({ dataRevision, ...rest }) => ({ ...rest, dataRevision }));

const logRecord = z.array(z.tuple([z.string(), z.union([z.instanceof(Uint8Array), z.null()])]));
export const encodeLogPart = (changes: readonly (readonly [string, Uint8Array | undefined])[]): Uint8Array =>
  encode(changes.map(([key, value]) => [key, value ?? null]));
export const decodeLogPart = (bytes: Uint8Array): [string, Uint8Array | undefined][] =>
  logRecord.parse(decode(bytes)).map(([key, value]) => [key, value ?? undefined]);
