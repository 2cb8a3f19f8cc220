/** What is mounted where, as this process sees it (proc_pid_mountinfo(5)). No file system is asked anything. */
import { readFileSync, realpathSync } from 'node:fs';
import { basename, dirname, join, resolve } from 'node:path';

/** What a mount of ours is called. */
export const FILE_SYSTEM = 'fuse.porthole';

export interface Mount {
  readonly point: string;
  readonly type: string;
  /** `major:minor`, which no other mounted file system has. */
  readonly device: string;
}

const unescape = (text: string): string =>
  text.replace(/\\([0-7]{3})/g, (_, digits: string) => String.fromCharCode(Number.parseInt(digits, 8)));

/** Of mounts over each other, the last one is seen. */
const mounts = (): Mount[] =>
  readFileSync('/proc/self/mountinfo', 'utf8')
    .split('\n')
    .flatMap((line) => {
      const [before, after] = line.split(' - ');
      const [, , device, , point] = before!.split(' ');
      if (after === undefined || device === undefined || point === undefined) return [];
      return [{ point: unescape(point), type: after.split(' ')[0]!, device }];
    });

/** The mount that an absolute path is on. */
export const mountOf = (path: string): Mount | undefined => {
  const isAbove = ({ point }: Mount): boolean => point === '/' || path === point || path.startsWith(`${point}/`);
  return mounts()
    .filter(isAbove)
    .reduce<Mount | undefined>(
      (longest, mount) => (longest !== undefined && mount.point.length < longest.point.length ? longest : mount),
      undefined,
    );
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
