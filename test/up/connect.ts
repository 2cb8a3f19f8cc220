/** Who may connect to a socket. */
import { spawnSync } from 'node:child_process';

/** What connect(2) says to a program of this user, by name, with all of the user's groups, or by number, with none. */
export const connectAs = (user: string | number, socket: string): string => {
  const script = `import os, socket, sys
try: socket.socket(socket.AF_UNIX).connect(sys.argv[1])
except OSError as error: print(os.strerror(error.errno))
else: print('connected')`;
  const group =
    typeof user === 'number' ? `${user}` : spawnSync('id', ['-g', user], { encoding: 'utf8' }).stdout.trim();
  const groups = typeof user === 'number' ? '--clear-groups' : '--init-groups';
  const who = ['--reuid', `${user}`, '--regid', group, groups];
  const { stdout, stderr } = spawnSync('setpriv', [...who, '/usr/bin/python3', '-c', script, socket], {
    encoding: 'utf8',
  });
  return stdout.trim() || stderr;
};
