/** What is mounted where, as this process sees it (proc_pid_mountinfo(5)). No file system is asked anything. */
import { readFileSync, realpathSync } from 'node:fs';
import { basename, dirname, join, resolve } from 'node:path';

/** What a mount of ours is called. */
export const FILE_SYSTEM = 'fuse.porthole';

export interface Mount {
  readonly point: string;
  readonly type: string;
  readonly source: string;
  /** `major:minor`, which no other mounted file system has. */
  readonly device: string;
}

const unescape = (text: string): string =>
  text.replace(/\\([0-7]{3})/g, (_, digits: string) => String.fromCharCode(Number.parseInt(digits, 8)));

/** Of mounts over each other, the last one is seen. */
export const mounts = (mountinfo = readFileSync('/proc/self/mountinfo', 'utf8')): Mount[] =>
  mountinfo.split('\n').flatMap((line) => {
    const [before, after] = line.split(' - ');
    const [, , device, , point] = before!.split(' ');
    if (after === undefined || device === undefined || point === undefined) return [];
    const [type = '', source = ''] = after.split(' ');
    return [{ point: unescape(point), type, source: unescape(source), device }];
  });

const liesOn = (path: string, point: string): boolean =>
  point === '/' || path === point || path.startsWith(`${point}/`);

/** The mount that an absolute path is on. */
const mountOf = (path: string): Mount | undefined =>
  mounts()
    .filter(({ point }) => liesOn(path, point))
    .reduce<Mount | undefined>(
      (longest, mount) => (longest !== undefined && mount.point.length < longest.point.length ? longest : mount),
      undefined,
    );

/** File systems whose answers come from a process, or from another machine. */
const servedTypes = /^(fuse|nfs|cifs|smb|9p|virtiofs|ceph|afs|autofs)/;

/** Whether the mount that a path is on is of such a type. */
export const isServed = (path: string): boolean => servedTypes.test(mountOf(path)?.type ?? '');

/** Where file systems on block devices are mounted, each once, that can be asked without waiting for whom others are served by. */
export const diskPoints = (all: readonly Mount[]): string[] => {
  const seen = new Map<string, string>();
  for (const [index, { source, point, type }] of all.entries()) {
    if (!source.startsWith('/dev/') || servedTypes.test(type) || seen.has(source)) continue;
    const leadsThrough = (other: Mount, at: number): boolean =>
      servedTypes.test(other.type) && liesOn(point, other.point) && (other.point !== point || at > index);
    if (!all.some(leadsThrough)) seen.set(source, point);
  }
  return [...seen.values()];
};

/** The mount at a path itself. */
export const mountAt = (path: string): Mount | undefined => mounts().findLast(({ point }) => point === path);

/** As the kernel would call a mount there. What may be mounted there already is not looked into: that could mean to wait. */
export const pointOf = (path: string): string => {
  const absolute = resolve(path);
  return join(realpathSync(dirname(absolute)), basename(absolute));
};

/** A mount of an agent, which may be gone. */
export const isMountedAt = (path: string): boolean => {
  try {
    return mountAt(pointOf(path))?.type === FILE_SYSTEM;
  } catch {
    // Not even its parent is there.
    return false;
  }
};
