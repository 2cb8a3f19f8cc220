/** Which CPUs the bench may use: one for the server, one for who calls it. */
import { spawnSync } from 'node:child_process';
import { readFileSync } from 'node:fs';

const allowed = (): string => /^Cpus_allowed_list:\s*(\S+)$/m.exec(readFileSync('/proc/self/status', 'utf8'))![1]!;

/** The first two CPUs of a list as Linux writes it: `0-3,8`. */
export function firstTwo(list: string): readonly [number, number] {
  const cpus = list.split(',').flatMap((range) => {
    const [from, to = from] = range.split('-').map(Number);
    return from === to ? [from!] : [from!, from! + 1];
  });
  if (cpus.length < 2) throw new Error(`the bench needs two CPUs, and may use only "${list}"`);
  return [cpus[0]!, cpus[1]!];
}

export const [serverCpu, callerCpu] = firstTwo(allowed());

/** Binds this process to one CPU until it is disposed of. */
export function bindSelf(cpu: number): Disposable {
  const before = allowed();
  const bind = (list: string): void => {
    spawnSync('taskset', ['-a', '-p', '-c', list, String(process.pid)]);
  };
  bind(String(cpu));
  return { [Symbol.dispose]: () => bind(before) };
}
