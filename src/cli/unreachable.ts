/** Why nobody answers, and what to do about it. */
import { readFileSync, statSync } from 'node:fs';
import { type Address, addressText, defaultSocket } from './where.ts';

/** Nobody answers. */
export class Unreachable extends Error {
  readonly code = 'UNREACHABLE';

  constructor(message: string, cause?: unknown) {
    super(message, { cause });
    this.name = 'Unreachable';
  }
}

export const unreachable = (address: Address, error: unknown): Unreachable =>
  new Unreachable(address.kind === 'unix' ? socketWords(address.path, error) : networkWords(address, error), error);

const codeOf = (error: unknown): string => {
  // Of several addresses of one name, the first tells enough.
  const first = error instanceof AggregateError ? error.errors[0] : error;
  return String((first as NodeJS.ErrnoException).code ?? (first instanceof Error ? first.message : first));
};

const startWords = 'start it with "porthole up" (or "systemctl start porthole")';

const socketWords = (path: string, error: unknown): string => {
  const code = codeOf(error);
  switch (code) {
    case 'ENOENT':
      return path === defaultSocket
        ? `the host daemon is not running: there is no "${path}"; ${startWords}`
        : `there is no socket "${path}"; is the host daemon running, with this --run directory?`;
    case 'ECONNREFUSED':
      return `the host daemon is not running: nobody listens on "${path}"; ${startWords}`;
    case 'EACCES':
    case 'EPERM':
      return `uid ${process.getuid?.()} may not use "${path}"; ${permissionWords(path)}`;
    default:
      return `asking the host daemon on "${path}" failed: ${code}`;
  }
};

const permissionWords = (path: string): string => {
  try {
    const { gid, mode } = statSync(path);
    const group = groupName(gid) ?? String(gid);
    if ((mode & 0o060) === 0o060 && gid !== 0)
      return `the group "${group}" may: run "adduser USER ${group}", then log in again`;
  } catch {
    // The directory above it is closed to us.
  }
  return 'run it as root, or as the user that the daemon runs as';
};

const groupName = (gid: number): string | undefined => {
  for (const line of readFileSync('/etc/group', 'utf8').split('\n')) {
    const [name, , id] = line.split(':');
    if (id === String(gid)) return name;
  }
  return undefined;
};

const networkWords = (address: Address & { readonly kind: 'http' }, error: unknown): string => {
  const { url } = address;
  const text = addressText(address);
  const code = codeOf(error);
  switch (code) {
    case 'ENOTFOUND':
    case 'EAI_AGAIN':
      return `there is no host "${url.hostname}", as far as this machine can tell; check --api and PORTHOLE_API`;
    case 'ECONNREFUSED':
      return `nobody listens at "${text}"; is the host daemon running there, with this address?`;
    case 'EHOSTUNREACH':
    case 'ENETUNREACH':
    case 'ETIMEDOUT':
      return `"${text}" can't be reached from here (${code})`;
    case 'DEPTH_ZERO_SELF_SIGNED_CERT':
    case 'SELF_SIGNED_CERT_IN_CHAIN':
    case 'UNABLE_TO_VERIFY_LEAF_SIGNATURE':
    case 'UNABLE_TO_GET_ISSUER_CERT_LOCALLY':
      return `the certificate of "${text}" is signed by nobody whom this machine trusts; name the file of its issuer: PORTHOLE_CA_FILE=FILE.pem, or "caFile" in the configuration`;
    case 'ERR_TLS_CERT_ALTNAME_INVALID':
      return `the certificate of "${text}" is for another name; use the name that it is for`;
    case 'EPROTO':
    case 'ERR_SSL_WRONG_VERSION_NUMBER':
    case 'HPE_INVALID_CONSTANT':
      return `"${text}" does not speak ${url.protocol === 'https:' ? 'TLS' : 'HTTP'}; is it ${url.protocol === 'https:' ? '"http://' : '"https://'}${url.host}"?`;
    default:
      return `asking "${text}" failed: ${code}`;
  }
};
