/** reboot(2): ends the machine at once, without asking any of its services. */
import { ENOSYS } from '../wire/index.ts';
import * as libc from './libc.ts';

const { result } = libc;

const SYS_reboot = { x64: 169, arm64: 142 } as const;
const SYS_sync = { x64: 162, arm64: 81 } as const;
const LINUX_REBOOT_MAGIC1 = 0xfee1dead;
const LINUX_REBOOT_MAGIC2 = 672274793;
const commands = { poweroff: 0x4321fedc, halt: 0xcdef0123 } as const;

/** Does not return when it succeeds; else the negative errno. In a pid namespace it ends that. */
export function endMachine(how: keyof typeof commands): number {
  const { arch } = process;
  if (arch !== 'x64' && arch !== 'arm64') return -ENOSYS;
  libc.syscall(SYS_sync[arch], 0, 0, 0, 0);
  return result(libc.syscall(SYS_reboot[arch], LINUX_REBOOT_MAGIC1, LINUX_REBOOT_MAGIC2, commands[how], 0));
}
