/** A system program, asked without a shell: what is foreign goes to its standard input, or is an argument of its own. */
import { spawn } from 'node:child_process';
import { once } from 'node:events';
import { text } from 'node:stream/consumers';

const packages: Readonly<Record<string, string>> = {
  ip: 'iproute2',
  nft: 'nftables',
  dnsmasq: 'dnsmasq-base',
  bird: 'bird2',
  birdc: 'bird2',
};
const withinMs = 60_000;
const path = '/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin';

/** Resolves with what it prints. Error with its words. */
export const program = async (name: string, args: readonly string[], input = ''): Promise<string> => {
  const child = spawn(name, args, { env: { PATH: path }, stdio: 'pipe', timeout: withinMs });
  child.stdin.on('error', () => {});
  child.stdin.end(input);
  const told = Promise.all([text(child.stdout), text(child.stderr)]);
  let ending: readonly unknown[];
  try {
    ending = await once(child, 'close');
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code !== 'ENOENT') throw error;
    throw new Error(`"${name}" is not there; install it (Debian's package ${packages[name]})`, { cause: error });
  }
  const [out, err] = await told;
  if (ending[0] === 0) return out;
  throw new Error(`"${[name, ...args].join(' ')}" failed: ${(err || out).trim().split('\n').slice(0, 3).join('; ')}`);
};
