/** What a host asks of a manager: the calls of `Store`, and who it is. */
import * as z from 'zod';
import { Resources } from '../records/index.ts';
import { limits } from '../store/index.ts';
import { Bytes } from './calls.ts';

const whole = z.int().nonnegative();
/** How long keys and values may be is checked by the store. */
const bytes = Bytes;
const key = Bytes;
const nothing = z.null();

const Entry = z.object({
  key,
  value: bytes,
  createRevision: whole,
  modRevision: whole,
  version: whole,
  leaseId: whole.optional(),
});

const Condition = z.union([z.strictObject({ key, modRevision: whole }), z.strictObject({ key, exists: z.boolean() })]);

const Operation = z.discriminatedUnion('type', [
  z.strictObject({ type: z.literal('put'), key, value: bytes, leaseId: whole.optional() }),
  z.strictObject({ type: z.literal('delete'), key }),
]);

const WatchEvent = z.discriminatedUnion('type', [
  z.object({ type: z.literal('put'), entry: Entry }),
  z.object({ type: z.literal('delete'), key, modRevision: whole }),
]);

const Range = z.strictObject({
  start: bytes,
  end: bytes.optional(),
  revision: whole.optional(),
  limit: z.int().min(1).max(limits.pageEntries).optional(),
});

/** Commits of one host that are under way at most: each takes a slot, whose mark says how the last one of it went. */
export const slots = 16;
const slot = z
  .int()
  .min(0)
  .max(slots - 1);
const markId = z.string().regex(/^[0-9a-zA-Z._-]{1,64}$/);

/** uids of Linux; its last one is none. */
const mostUids = 2 ** 32 - 1;

/** What a host tells of itself. */
export const HostFacts = z.strictObject({
  version: z.string().max(64),
  capacity: Resources.optional(),
  uids: z
    .strictObject({ first: z.int().positive(), count: z.int().positive() })
    .refine(({ first, count }) => first + count <= mostUids)
    .optional(),
});
export type HostFacts = z.infer<typeof HostFacts>;

export const storeCalls = {
  /**
   * Comes first. Who has said hello as this host before can write nothing more: marks are put anew, and what they said until
   * then is told.
   */
  hello: {
    args: z.strictObject({ instance: z.string().regex(/^[0-9a-f]{16}$/), facts: HostFacts }),
    answer: z.object({
      region: z.string(),
      host: z.string(),
      manager: z.string(),
      epoch: whole,
      /** Of each slot, what it said; '' where it said nothing yet. */
      marks: z.array(z.object({ id: z.string(), revision: whole })).length(slots),
      /** Of the marks now. */
      revision: whole,
    }),
  },
  commit: {
    args: z.strictObject({
      slot,
      /** Revision of the slot's mark: it is another's when somebody has said hello since. */
      known: whole,
      id: markId,
      conditions: z.array(Condition).max(limits.operations),
      operations: z.array(Operation).max(limits.operations),
    }),
    answer: z.object({
      /** `fenced`: somebody has said hello as this host since. Nothing was done. */
      result: z.enum(['committed', 'unmet', 'fenced']),
      revision: whole,
      unmet: z.array(whole).optional(),
    }),
  },
  get: { args: z.strictObject({ key, revision: whole.optional() }), answer: Entry.nullable() },
  range: {
    args: Range,
    answer: z.object({ revision: whole, entries: z.array(Entry), next: bytes.optional() }),
  },
  count: { args: Range, answer: z.object({ revision: whole, count: whole }) },
  watch: {
    args: z.strictObject({ start: bytes, end: bytes.optional(), from: whole }),
    answer: nothing,
    item: z.object({ revision: whole, events: z.array(WatchEvent) }),
  },
  revision: { args: nothing, answer: whole },
  grantLease: { args: z.strictObject({ ttlSeconds: z.number() }), answer: z.object({ id: whole, ttlSeconds: whole }) },
  keepAlive: { args: z.strictObject({ leaseId: whole }), answer: nothing },
  /** The host's own lease, from when it asked: granted anew where the last has run out. */
  lease: {
    args: z.strictObject({ machine: z.string().min(1).max(64) }),
    answer: z.object({ id: z.string(), seconds: z.int().positive() }),
  },
  revokeLease: { args: z.strictObject({ leaseId: whole }), answer: nothing },
  compact: { args: z.strictObject({ revision: z.number() }), answer: nothing },
  /** A blob of the image of a VM that is assigned to the host: its manifest, or what that names. */
  imageBlob: {
    args: z.strictObject({ vm: z.string().max(64), digest: z.string().max(128), offset: whole }),
    answer: z.object({ sizeBytes: whole }),
    item: Bytes,
  },
  /** A certificate for the key that this one is for, which goes on for longer. */
  renew: {
    args: z.strictObject({ request: z.string().max(16 * 1024) }),
    answer: z.object({ certificate: z.string() }),
  },
} as const;
export type StoreCalls = typeof storeCalls;
