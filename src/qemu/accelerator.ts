/** Whether this machine can run guests on its own CPU: found out by booting one, because /dev/kvm may exist and yet boot none. */
import { execFile } from 'node:child_process';
import { existsSync, mkdtempSync, rmSync, statSync, truncateSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { promisify } from 'node:util';
import { printable } from '../wire/index.ts';
import type { Accelerator } from './machine.ts';

export interface AcceleratorFound {
  readonly accelerator: Accelerator;
  /** Why it is not KVM; empty where it is. For people. */
  readonly reason: string;
  /** Groups that QEMU's user needs for it. */
  readonly groups: readonly number[];
}

/** What the probe prints when it has come to 64-bit mode with paging and used an SSE register, as every 64-bit kernel does. */
const said = 'porthole';

/** A boot sector (x86-64, loaded at 0x7c00); its assembly stands beside its bytes. */
const bootSector = Buffer.from(
  [
    'fa', //                   cli
    '31c0 8ed8 8ec0 8ed0', //  xor ax, ax; ds, es and ss = 0
    'bc007c', //               mov sp, 0x7c00
    'bf0010 b90018 fc f3ab', // zero the page tables: 0x1000 to 0x3fff
    'c70600100320', //         PML4[0] = 0x2003: present, writable
    'c70600200330', //         PDPT[0] = 0x3003
    'c70600308300', //         PD[0] = 0x83: 2 MiB page at 0
    '0f0116a07c', //           lgdt [0x7ca0]
    '66b820060000 0f22e0', //  cr4 = PAE | OSFXSR | OSXMMEXCPT
    '66b800100000 0f22d8', //  cr3 = 0x1000
    '66b9800000c0 0f32', //    rdmsr EFER
    '660d00010000 0f30', //    EFER |= LME; wrmsr
    '66b811000080 0f22c0', //  cr0 = PG | ET | PE
    'ea5c7c0800', //           jmp 8:0x7c5c, which is 64-bit code
    '48b8', //                 movabs rax, the eight characters
    Buffer.from(said).toString('hex'),
    '66480f6ec0 66480f7ec3', // movq xmm0, rax; movq rbx, xmm0
    'b908000000', //           mov ecx, 8
    '88d8 e6e9', //            mov al, bl; out 0xe9, al
    '48c1eb08 e2f6', //        shr rbx, 8; loop
    '66ba0105 31c0 ef', //     out 0x501, eax: QEMU ends with status 1
    'f4 ebfd', //              hlt, for ever
    '0f1f8000000000', //       (alignment)
    '0000000000000000', //     GDT at 0x7c90: null
    '00000000009a2000', //     64-bit code segment
    '0f00 907c0000', //        its limit and address
  ]
    .join('')
    .replaceAll(' ', ''),
  'hex',
);

/** Firmware probes no disk smaller than this. */
const diskBytes = 1024 * 1024;

/** KVM where a guest of 64 bits booted under it within `withinMs` (10,000 unless given), else TCG with the reason. */
export async function findAccelerator(withinMs = 10_000): Promise<AcceleratorFound> {
  const tcg = (reason: string): AcceleratorFound => ({ accelerator: 'tcg', reason, groups: [] });
  if (!existsSync('/dev/kvm')) return tcg('there is no /dev/kvm');
  if (process.arch !== 'x64') return tcg(`whether KVM works is not found out on ${process.arch} yet; name it yourself`);
  const failure = await probe('kvm', withinMs);
  return failure === undefined
    ? { accelerator: 'kvm', reason: '', groups: [statSync('/dev/kvm').gid] }
    : tcg(`/dev/kvm is there, but a small guest did not boot under it: ${failure}`);
}

/** Boots the sector; undefined when it said what it must, else what went wrong. x86-64 only. */
export async function probe(accelerator: Accelerator, withinMs: number): Promise<string | undefined> {
  const directory = mkdtempSync(join(tmpdir(), 'porthole-probe-'));
  try {
    const disk = join(directory, 'disk');
    const sector = Buffer.alloc(512);
    bootSector.copy(sector);
    sector.writeUInt16LE(0xaa55, 510);
    writeFileSync(disk, sector);
    truncateSync(disk, diskBytes);
    const args = [
      ['-nodefaults', '-no-user-config', '-display', 'none', '-no-reboot', '-machine', 'q35', '-m', '64M'],
      ['-accel', accelerator, '-cpu', accelerator === 'kvm' ? 'host' : 'max'],
      ['-blockdev', `driver=raw,node-name=disk,read-only=on,file.driver=file,file.filename=${disk}`],
      ['-device', 'virtio-blk-pci,drive=disk', '-chardev', 'stdio,id=out,signal=off'],
      ['-device', 'isa-debugcon,iobase=0xe9,chardev=out', '-device', 'isa-debug-exit,iobase=0x501,iosize=4'],
    ].flat();
    const options = { timeout: withinMs, killSignal: 'SIGKILL' as const, maxBuffer: 64 * 1024 };
    // It ends with status 1 when all went well, so always by an "error".
    const error: unknown = await promisify(execFile)('qemu-system-x86_64', args, options).catch((e: unknown) => e);
    const { stdout = '', stderr = '', killed } = error as { stdout?: string; stderr?: string; killed?: boolean };
    if (stdout === said) return undefined;
    const words = printable(stderr.trim().split('\n')[0] ?? '');
    return killed === true ? `nothing happened within ${withinMs} ms` : words || (error as Error).message;
  } finally {
    rmSync(directory, { recursive: true, force: true });
  }
}
