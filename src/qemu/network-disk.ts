/** A disk that is elsewhere: NBD over TLS, with a key that both sides know and that is on no command line. */
import { chmodSync, chownSync, mkdirSync, renameSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';

export interface NetworkDisk {
  readonly address: string;
  readonly port: number;
  /** Its export's name. */
  readonly name: string;
  /** A directory with the key: see `writeDiskKey`. */
  readonly keyDirectory: string;
}

/** As whom QEMU has the key; `qemu-nbd` takes any that has it. */
export const diskKeyUser = 'porthole';

/** Puts a key where QEMU's programs look for it (GnuTLS' file of pre-shared keys), for that user alone. */
export const writeDiskKey = (directory: string, key: string, uid: number | undefined): void => {
  mkdirSync(directory, { recursive: true });
  chmodSync(directory, 0o711);
  const file = join(directory, 'keys.psk');
  writeFileSync(`${file}.new`, `${diskKeyUser}:${key}\n`, { mode: 0o400 });
  if (uid !== undefined) chownSync(`${file}.new`, uid, uid);
  renameSync(`${file}.new`, file);
};
