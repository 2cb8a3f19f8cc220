/**
 * Which of this machine's uids a host daemon may give to its VMs. When a VM is deleted, all that runs as its uid is killed:
 * two daemons that gave out the same ones would end each other's VMs. Claims are files of one directory for the machine,
 * gone with a restart of it, as VMs are.
 */
import { closeSync, mkdirSync, openSync, readdirSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { z } from 'zod';
import { identify, runsAsOneOf } from '../qemu/index.ts';
import { flock, LOCK_EX } from '../sys/index.ts';
import { errnoName } from '../wire/index.ts';

/** uids from `first` on. */
export interface UidRange {
  readonly first: number;
  readonly count: number;
}

export interface UidClaimOptions {
  readonly count: number;
  /** As the operator wants it; undefined: the same as last time, or else the first that nobody has. */
  readonly first: number | undefined;
  /** Absolute, without symbolic links: a daemon is known by it, over its restarts. */
  readonly stateDirectory: string;
  readonly directory?: string;
  /** Ranges that are given to users of this machine for their containers (subuid(5)). */
  readonly subordinate?: string;
}

const claimsDirectory = '/run/porthole-uids';
const defaultFirst = 700_000;
/** From one range that is tried to the next; the ids behind a range are for groups and converters of images. */
const strideUids = 65_536;
/** The last ids are nobody's and -1's. */
const lastUid = 0x7fff_ffff;
const rememberedName = 'uids';

const Claim = z.object({
  first: z.int().nonnegative(),
  count: z.int().positive(),
  stateDirectory: z.string(),
  daemon: z.object({ pid: z.int().positive(), startTicks: z.int().nonnegative(), machineBootId: z.string() }),
});
type Claim = z.infer<typeof Claim>;

/** Gives the range that is this daemon's from now on. Throws, in words for who started it, where there is none. */
export const claimUids = (options: UidClaimOptions): UidRange => {
  const { directory = claimsDirectory } = options;
  const lock = openLock(directory);
  try {
    const errno = flock(lock, LOCK_EX);
    if (errno < 0) throw new Error(`"${directory}" cannot be locked: ${errnoName(-errno)}`);
    return claimAlone(options, directory);
  } finally {
    closeSync(lock);
  }
};

const openLock = (directory: string): number => {
  try {
    mkdirSync(directory, { recursive: true, mode: 0o755 });
    return openSync(join(directory, 'lock'), 'a', 0o600);
  } catch (error) {
    const { code } = error as NodeJS.ErrnoException;
    throw new Error(
      `uids for VMs cannot be claimed in "${directory}" (${code}); let the daemon write there, or give --uid-base 0, with which all run as this user`,
      { cause: error },
    );
  }
};

const claimAlone = (options: UidClaimOptions, directory: string): UidRange => {
  const { count, stateDirectory, subordinate = '/etc/subuid' } = options;
  const remembered = readFirst(stateDirectory);
  if (options.first !== undefined && remembered !== undefined && options.first !== remembered)
    throw new Error(
      `VMs of "${stateDirectory}" have uids from ${remembered} on, and not from ${options.first}; leave --uid-base out, or give another --state directory`,
    );
  const first = options.first ?? remembered;
  const others = readClaims(directory).filter((claim) => claim.stateDirectory !== stateDirectory);
  if (first !== undefined && first + count > lastUid)
    throw new Error(`the ${count} uids from ${first} on go beyond the last one, ${lastUid}; give a lower --uid-base`);
  const range = first === undefined ? findFree(count, [...others, ...readSubordinates(subordinate)]) : { first, count };
  const other = others.find((claim) => overlap(claim, range));
  if (other !== undefined)
    throw new Error(
      `the uids from ${first} on are those of the VMs of another host daemon, whose state is in "${other.stateDirectory}"; give another --state directory, which gets uids of its own; or end that daemon and its VMs, and remove its state`,
    );
  const claim = { ...range, stateDirectory, daemon: identify(process.pid)! } satisfies Claim;
  writeFileSync(join(directory, String(range.first)), JSON.stringify(claim), { mode: 0o644 });
  if (remembered === undefined)
    writeFileSync(join(stateDirectory, rememberedName), `${range.first}\n`, { mode: 0o600 });
  return range;
};

const findFree = (count: number, taken: readonly UidRange[]): UidRange => {
  for (let first = defaultFirst; first + count <= lastUid; first += strideUids)
    if (!taken.some((one) => overlap(one, { first, count }))) return { first, count };
  throw new Error(`no ${count} uids in a row are free on this machine for VMs; name some with --uid-base`);
};

const overlap = (a: UidRange, b: UidRange): boolean => a.first < b.first + b.count && b.first < a.first + a.count;

/** Its state is there, its daemon lives, or a VM of its goes on without one. */
const isHeld = (claim: Claim): boolean =>
  readFirst(claim.stateDirectory) === claim.first ||
  identify(claim.daemon.pid)?.startTicks === claim.daemon.startTicks ||
  runsAsOneOf(claim);

/** Those that hold. The others, and what is no claim, are taken away. */
const readClaims = (directory: string): Claim[] =>
  readdirSync(directory)
    .filter((name) => /^\d+$/.test(name))
    .flatMap((name) => {
      const file = join(directory, name);
      const claim = readClaim(file);
      if (claim !== undefined && isHeld(claim)) return [claim];
      rmSync(file);
      return [];
    });

const readClaim = (file: string): Claim | undefined => {
  try {
    return Claim.parse(JSON.parse(readFileSync(file, 'utf8')));
  } catch {
    return undefined;
  }
};

const readFirst = (stateDirectory: string): number | undefined => {
  try {
    const first = Number(readFileSync(join(stateDirectory, rememberedName), 'utf8').trim());
    return Number.isInteger(first) && first > 0 ? first : undefined;
  } catch {
    return undefined;
  }
};

const readSubordinates = (file: string): UidRange[] => {
  let text: string;
  try {
    text = readFileSync(file, 'utf8');
  } catch {
    return [];
  }
  return text.split('\n').flatMap((line) => {
    const [, first, count] = line.split(':').map(Number);
    return Number.isInteger(first) && Number.isInteger(count) && count! > 0 ? [{ first: first!, count: count! }] : [];
  });
};
