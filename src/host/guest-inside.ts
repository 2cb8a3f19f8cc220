/**
 * What the agent in a guest says of the guest's inside: `/guest/.agent/status.json` and `processes.json`. Whoever is root there
 * writes what it likes, so this is data of a stranger: held to a shape and to numbers that make sense, its text made
 * printable, and nothing of it decides anything.
 */
import * as z from 'zod';
import type { GuestInside, GuestProcess, GuestStatus } from '../records/index.ts';
import type { Node, Snapshot } from '../tree/index.ts';
import { printable, S_IFMT, S_IFREG } from '../wire/index.ts';

const statusPath = '/guest/.agent/status.json';
const processesPath = '/guest/.agent/processes.json';

/** JSON beyond these is not parsed. */
const statusBytes = 64 * 1024;
const processesBytes = 1024 * 1024;

const text = (most: number) => z.string().max(most).transform(printable);
/** More than any machine has: 2^60, an exbibyte. */
const bytes = z
  .int()
  .min(0)
  .max(Number.MAX_SAFE_INTEGER)
  .refine((value) => value <= 2 ** 60, 'is more than there is');
const atMost = (most: number) => z.number().min(0).max(most);

const status = z.object({
  version: z.literal(1),
  at: z.iso.datetime(),
  uptimeSeconds: atMost(2 ** 40),
  load: z.tuple([atMost(1e6), atMost(1e6), atMost(1e6)]),
  memory: z.object({ totalBytes: bytes, availableBytes: bytes }),
  swap: z.object({ totalBytes: bytes, freeBytes: bytes }),
  disks: z.array(z.object({ mount: text(4096), totalBytes: bytes, freeBytes: bytes })).max(64),
  agent: z.object({
    version: text(128),
    pid: z
      .int()
      .min(1)
      .max(2 ** 22),
    startedAt: z.iso.datetime(),
  }),
}) satisfies z.ZodType<GuestStatus>;

const processes = z.object({
  version: z.literal(1),
  at: z.iso.datetime(),
  processes: z
    .array(
      z.object({
        pid: z
          .int()
          .min(1)
          .max(2 ** 22),
        user: text(256),
        uid: z
          .int()
          .min(0)
          .max(2 ** 32 - 1),
        command: text(4096),
        cpuPercent: atMost(1e6),
        memoryBytes: bytes,
        state: text(16),
      }) satisfies z.ZodType<GuestProcess>,
    )
    .max(1000),
});

/** Without values of them: they are the guest's. */
const problemOf = (path: string, error: z.ZodError): string => {
  const [issue] = error.issues;
  const where = issue === undefined || issue.path.length === 0 ? '' : ` at ${printable(issue.path.join('.'))}`;
  return `${path} is not as an agent writes it${where}`;
};

export interface InsideFiles {
  /** Those that are there. */
  readonly nodes: readonly Node[];
  read(): GuestInside;
}

/** What a tree has of it now. `wallMs`: to say how old it is, by the clock of this machine. */
export const insideOf = (snapshot: Snapshot, wallMs: number): InsideFiles => {
  const fileAt = (path: string): Node | undefined => {
    const node = snapshot.resolve(path);
    // The directory is root's in the guest; what is in it and is not root's was moved there by root.
    return node !== undefined && (node.mode & S_IFMT) === S_IFREG && node.uid === 0 ? node : undefined;
  };
  const [statusNode, processesNode] = [fileAt(statusPath), fileAt(processesPath)];
  return {
    nodes: [statusNode, processesNode].filter((node) => node !== undefined),
    read: () => {
      const problems: string[] = [];
      const parsed = <T>(path: string, node: Node | undefined, most: number, schema: z.ZodType<T>): T | undefined => {
        if (node?.bytes === undefined) return undefined;
        if (node.bytes.length > most) {
          problems.push(`${path} has ${node.bytes.length} bytes; an agent writes at most ${most}`);
          return undefined;
        }
        const result = schema.safeParse(jsonOf(node.bytes));
        if (!result.success) problems.push(problemOf(path, result.error));
        return result.data;
      };
      const age = (node: Node | undefined): number => Math.max(0, wallMs - (node?.ctime.sec ?? 0) * 1000);
      const inside = parsed(statusPath, statusNode, statusBytes, status);
      const listed = parsed(processesPath, processesNode, processesBytes, processes);
      return {
        ...(inside !== undefined && { status: inside, statusAgeMs: age(statusNode) }),
        ...(listed !== undefined && { processes: listed.processes, processesAgeMs: age(processesNode) }),
        problems,
      };
    },
  };
};

/** Undefined, which no schema takes, for what is no JSON. */
const jsonOf = (value: Uint8Array): unknown => {
  try {
    return JSON.parse(new TextDecoder('utf-8', { fatal: true }).decode(value));
  } catch {
    return undefined;
  }
};
