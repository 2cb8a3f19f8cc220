/**
 * Loads koffi's native part in the one-file executable, where it is an asset and no file: from a memory file, so that no
 * directory needs to be writable or executable. The build puts this module in the place of koffi's own search.
 */

import { dlopen } from 'node:ffi';
import { writeFileSync } from 'node:fs';
import { getRawAsset } from 'node:sea';
import { getEnvironmentData, setEnvironmentData } from 'node:worker_threads';

const MFD_CLOEXEC = 1;
/** The file itself is never executed; a kernel may be told to refuse any other (sysctl vm.memfd_noexec). Since Linux 6.3. */
const MFD_NOEXEC_SEAL = 8;

const asset = 'koffi.node';
/** Threads load what the process has loaded already. */
const pathKey = 'porthole:koffi';

const fileInMemory = (): string => {
  using libc = dlopen('libc.so.6', { memfd_create: { arguments: ['string', 'uint32'], return: 'int32' } });
  const create = libc.functions.memfd_create;
  let fd = create(asset, MFD_CLOEXEC | MFD_NOEXEC_SEAL);
  if (fd < 0) fd = create(asset, MFD_CLOEXEC);
  if (fd < 0) throw new Error('cannot make a file in memory (memfd_create) for the native part of koffi');
  writeFileSync(fd, Buffer.from(getRawAsset(asset) as ArrayBuffer));
  // Stays open: the dynamic linker knows a library by its path, and this path must not become another's.
  return `/proc/self/fd/${fd}`;
};

/** Takes the place of koffi's function of that name. */
export const loadStatic = (): unknown => {
  const known = getEnvironmentData(pathKey);
  const path = typeof known === 'string' ? known : fileInMemory();
  setEnvironmentData(pathKey, path);
  const addon = { exports: {} };
  process.dlopen(addon, path);
  return addon.exports;
};
