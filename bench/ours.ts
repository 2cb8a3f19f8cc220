/** Our side of every group: `porthole serve` over a tree of two files, and the same content as files for a peer. */
import { spawnSync } from 'node:child_process';
import { chmodSync, existsSync, mkdirSync, readFileSync, writeFileSync } from 'node:fs';
import path from 'node:path';
import { virtiofsdProgram } from '../test/virtiofsd.ts';
import { Server } from './server.ts';

export const VALUE_BYTES = 1024;
/** `static`: world-readable, for kernels to cache. `direct`: root's 0400, never cached, decided and audited each time. */
export const fileNames = { static: 'static', direct: 'direct' } as const;
const value = 'x'.repeat(VALUE_BYTES);

export const isMounted = (directory: string): boolean =>
  readFileSync('/proc/self/mountinfo', 'utf8').includes(` ${directory} `);

export const unmount = (directory: string): void => {
  if (isMounted(directory)) spawnSync('umount', ['-l', directory]);
};

/** Starts `porthole serve` with all that it keeps in `scratch`; ready when every way in that was asked for is there. */
export function startOurs(
  scratch: string,
  ways: { readonly mount?: string; readonly socket?: string; readonly ninep?: string },
  extraNodes = 0,
): Promise<Server> {
  const { mount, socket, ninep } = ways;
  const file = path.join(scratch, 'tree.yaml');
  const extra = Array.from({ length: extraNodes }, (_, i) => `    f${i}: "${i}"\n`).join('');
  writeFileSync(
    file,
    `porthole: 1
metadata:
  ${fileNames.static}: "${value}"
  ${fileNames.direct}: "${value}"
${extraNodes > 0 ? `  many:\n${extra}` : ''}policy:
  - { path: /${fileNames.static}, mode: "0444" }
  - { path: /${fileNames.direct}, mode: "0400" }
`,
  );
  if (mount !== undefined) mkdirSync(mount);
  return Server.start(
    'porthole serve',
    [
      './porthole',
      'serve',
      file,
      ...(mount === undefined ? [] : ['--mount', mount]),
      ...(socket === undefined ? [] : ['--vhost-user', socket]),
      ...(ninep === undefined ? [] : ['--9p', ninep]),
      '--state',
      path.join(scratch, 'state'),
      '--audit',
      path.join(scratch, 'audit.jsonl'),
    ],
    () =>
      (mount === undefined || isMounted(mount)) && [socket, ninep].every((one) => one === undefined || existsSync(one)),
    () => (mount === undefined ? undefined : unmount(mount)),
  );
}

/** Starts Debian's C virtiofsd over a directory with the same content, which it makes. */
export function startVirtiofsd(
  directory: string,
  socket: string,
  cache: 'auto' | 'none',
  extraNodes = 0,
): Promise<Server> {
  mkdirSync(directory);
  chmodSync(directory, 0o755);
  for (const [name, mode] of [
    [fileNames.static, 0o444],
    [fileNames.direct, 0o400],
  ] as const) {
    writeFileSync(path.join(directory, name), value);
    chmodSync(path.join(directory, name), mode);
  }
  if (extraNodes > 0) mkdirSync(path.join(directory, 'many'));
  for (let i = 0; i < extraNodes; i++) writeFileSync(path.join(directory, 'many', `f${i}`), String(i));
  return Server.start(
    'virtiofsd',
    [virtiofsdProgram, `--socket-path=${socket}`, '-o', `source=${directory}`, '-o', `cache=${cache}`],
    () => existsSync(socket),
  );
}
