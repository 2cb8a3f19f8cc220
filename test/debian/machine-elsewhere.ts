/**
 * A machine of the Debian disk whose hypervisor is not Porthole's: a QEMU of the test's own, without a virtiofs device, that
 * claims to be EC2's. 169.254.169.254 leads to a relay, each connection to one of its own.
 */
import assert from 'node:assert/strict';
import { type ChildProcess, execFileSync, spawn } from 'node:child_process';
import { once } from 'node:events';
import { existsSync, readFileSync } from 'node:fs';
import path from 'node:path';
import { qemuVsockArguments } from '../../src/host/index.ts';
import { until } from '../until.ts';

export interface ElsewhereOptions {
  readonly directory: string;
  /** A qcow2 that is read only. */
  readonly disk: string;
  /** The front end's socket of the vsock device. */
  readonly vsockFront: string;
  /** Addresses in 169.254.169.0/24, at whose port 80 a unix socket of this machine answers. */
  readonly relays: Readonly<Record<string, string>>;
  readonly mac: string;
  /** A port of this machine that leads to the guest's SSH server. */
  readonly sshPort: number;
  /** A unix socket that the guest's virtio-serial port for metadata is connected to; without one it has none. */
  readonly serial?: string | undefined;
  /** Read-only, as the second disk. */
  readonly second: string;
}

const uuid = 'ec2a2f5e-3c6b-4f0e-9a53-0b7d7c0f1a2b';

export class MachineElsewhere implements AsyncDisposable {
  /** What the machine wrote. */
  readonly disk: string;
  readonly #qemu: ChildProcess;
  readonly #console: string;
  #said = '';

  constructor({ directory, disk, vsockFront, relays, mac, sshPort, serial, second }: ElsewhereOptions) {
    this.disk = path.join(directory, 'disk.qcow2');
    this.#console = path.join(directory, 'console');
    if (!existsSync(this.disk))
      execFileSync('qemu-img', ['create', '-q', '-f', 'qcow2', '-F', 'qcow2', '-b', disk, this.disk]);
    const forwards = Object.entries(relays).map(
      ([address, socket]) => `guestfwd=tcp:${address}:80-cmd:socat -lf /dev/null -t 30 - UNIX-CONNECT:${socket}`,
    );
    const args = [
      ['-nodefaults', '-no-user-config', '-display', 'none', '-no-reboot'],
      ['-accel', 'tcg,tb-size=256', '-cpu', 'max', '-smp', '2', '-m', '1G'],
      ['-machine', 'q35,hpet=off,smm=off,vmport=off,i8042=off,sata=off,smbus=off,memory-backend=mem'],
      ['-object', 'memory-backend-memfd,id=mem,size=1G,share=on', '-uuid', uuid, '-smbios', `type=1,serial=${uuid}`],
      ['-drive', `file=${this.disk},format=qcow2,if=virtio`],
      ['-drive', `file=${second},format=raw,if=virtio,readonly=on`],
      ['-chardev', `file,id=console,path=${this.#console}`, '-serial', 'chardev:console'],
      [
        '-netdev',
        `user,id=net,ipv6=off,restrict=on,net=169.254.169.0/24,hostfwd=tcp:127.0.0.1:${sshPort}-:22,${forwards.join(',')}`,
      ],
      ['-device', `virtio-net-pci,netdev=net,mac=${mac},romfile=`],
      qemuVsockArguments(vsockFront),
      serial === undefined
        ? []
        : [
            ...['-device', 'virtio-serial-pci', '-chardev', `socket,id=metadata,path=${serial},reconnect=1`],
            ...['-device', 'virtserialport,chardev=metadata,name=org.porthole.metadata'],
          ],
    ].flat();
    // It must not outlive a killed test run.
    this.#qemu = spawn('setpriv', ['--pdeathsig', 'SIGKILL', 'qemu-system-x86_64', ...args], {
      stdio: ['ignore', 'ignore', 'pipe'],
    });
    this.#qemu.stderr!.setEncoding('utf8').on('data', (text: string) => {
      this.#said += text;
    });
  }

  get console(): string {
    return existsSync(this.#console) ? readFileSync(this.#console, 'latin1') : '';
  }

  /** Resolves when it has powered off, or reboots, which ends it too. */
  untilOff(withinMs: number): Promise<unknown> {
    return until('the machine to be off', () => !this.isRunning, withinMs);
  }

  get isRunning(): boolean {
    return this.#qemu.exitCode === null && this.#qemu.signalCode === null;
  }

  /** Fails when it has ended. */
  readonly check = (): void => assert.ok(this.isRunning, `QEMU ended: ${this.#said}\n${this.console.slice(-4_000)}`);

  async [Symbol.asyncDispose](): Promise<void> {
    if (!this.isRunning) return;
    const ended = once(this.#qemu, 'exit');
    this.#qemu.kill('SIGKILL');
    await ended;
  }
}
