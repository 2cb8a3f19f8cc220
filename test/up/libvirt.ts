/**
 * libvirt's own daemon, in name spaces of its own: it and its machines have the places that it always uses (/etc/libvirt,
 * /run/libvirt, …) to themselves, empty at first, and all of it is gone with it. Only its socket is seen from outside.
 */
import assert from 'node:assert/strict';
import { type ChildProcess, execFile, spawn } from 'node:child_process';
import { once } from 'node:events';
import { closeSync, constants, mkdtempSync, openSync, readFileSync, rmSync, writeFileSync, writeSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import type { TestContext } from 'node:test';
import { promisify } from 'node:util';
import { until } from '../until.ts';
import { bootLimitMs } from './machine.ts';

const run = promisify(execFile);
const places = ['/etc/libvirt', '/run/libvirt', '/var/lib/libvirt', '/var/log/libvirt', '/var/cache/libvirt'];

export class Libvirt {
  readonly uri: string;
  readonly #logFile: string;
  readonly #daemon: ChildProcess;
  #said = '';

  /** Ends before what the test makes afterwards. */
  constructor(t: TestContext) {
    const directory = mkdtempSync(join(tmpdir(), 'ph-lv-'));
    const configuration = join(directory, 'libvirtd.conf');
    this.#logFile = join(directory, 'libvirtd.log');
    this.uri = `qemu+unix:///system?socket=${directory}/libvirt-sock`;
    writeFileSync(
      configuration,
      [
        `unix_sock_dir = "${directory}"`,
        'auth_unix_ro = "none"',
        'auth_unix_rw = "none"',
        `log_outputs = "3:file:${this.#logFile}"`,
        '',
      ].join('\n'),
    );
    const script = `set -eu
      for place in ${places.join(' ')}; do mkdir -p "$place"; mount -t tmpfs -o mode=0755 libvirt "$place"; done
      echo 'stdio_handler = "file"' >/etc/libvirt/qemu.conf
      # A KVM that its machines' user may not open has libvirtd look at QEMU anew, again and again: here there is none.
      if [ -e /dev/kvm ]; then
        (umask 077; >/run/libvirt/kvm)
        mount --bind /run/libvirt/kvm /dev/kvm
        # The /dev that it makes for each machine cannot have such a mount in it.
        echo 'namespaces = []' >>/etc/libvirt/qemu.conf
      fi
      # The shell is process 1: it takes up machines that ended, which libvirtd leaves to it.
      libvirtd --config "$1" --pid-file /run/libvirt/libvirtd.pid & wait $!`;
    const spaces = ['--mount', '--propagation', 'private', '--pid', '--fork', '--mount-proc', '--kill-child'];
    this.#daemon = spawn('unshare', [...spaces, 'sh', '-c', script, 'sh', configuration], {
      stdio: ['ignore', 'ignore', 'pipe'],
      env: { PATH: '/usr/sbin:/usr/bin:/sbin:/bin' },
    });
    this.#daemon.stderr!.setEncoding('utf8').on('data', (text: string) => {
      this.#said += text;
    });
    t.after(async () => {
      await this.#end();
      rmSync(directory, { recursive: true });
    });
  }

  async #end(): Promise<void> {
    if (this.#daemon.exitCode !== null || this.#daemon.signalCode !== null) return;
    const exit = once(this.#daemon, 'exit');
    // Its child is process 1 in there, and takes all others with it.
    const { pid } = this.#daemon;
    const child = Number.parseInt(readFileSync(`/proc/${pid}/task/${pid}/children`, 'utf8'), 10);
    process.kill(child || pid!, 'SIGKILL');
    await exit;
  }

  async untilReady(): Promise<void> {
    await until(
      'the daemon of libvirt',
      async () => {
        assert.equal(this.#daemon.exitCode, null, `it ended: ${this.#said}`);
        return this.virsh('list').catch(() => false as const);
      },
      60_000,
    );
  }

  /** What it printed; an error that has what libvirt says otherwise. */
  async virsh(...words: readonly string[]): Promise<string> {
    const environment = { ...process.env, LC_ALL: 'C' };
    try {
      return (await run('virsh', ['-c', this.uri, ...words], { env: environment, timeout: 60_000 })).stdout;
    } catch (error) {
      let log = '';
      try {
        log = readFileSync(this.#logFile, 'utf8').slice(-2_000);
      } catch {}
      throw new Error(`virsh ${words.join(' ')}: ${(error as { readonly stderr?: string }).stderr}\n${log}`, {
        cause: error,
      });
    }
  }

  /** Of a domain that runs; it is over when that ends. */
  async console(t: TestContext, domain: string): Promise<DomainConsole> {
    return new DomainConsole(t, (await this.virsh('ttyconsole', domain)).trim());
  }
}

/** A shell on the terminal that libvirt gives a guest. */
class DomainConsole {
  readonly #terminal: number;
  #text = '';

  constructor(t: TestContext, path: string) {
    const reader = spawn('cat', [path], { stdio: ['ignore', 'pipe', 'ignore'] });
    reader.stdout.setEncoding('latin1').on('data', (text: string) => {
      this.#text += text;
    });
    this.#terminal = openSync(path, constants.O_WRONLY | constants.O_NOCTTY | constants.O_NONBLOCK);
    t.after(() => {
      closeSync(this.#terminal);
      reader.kill('SIGKILL');
    });
  }

  write(text: string): void {
    writeSync(this.#terminal, text);
  }

  /** Waits until the guest's shell waits, for the `count`th boot that this console has seen. */
  async ready(count = 1): Promise<void> {
    // The shell asks the terminal for its width behind the prompt.
    const isReady = (): boolean =>
      ['# ', '# \u{1b}[6n'].some((end) => this.#text.split('tiny: ready')[count]?.endsWith(end));
    await until('the guest’s shell', isReady, bootLimitMs).catch((cause: unknown) => {
      throw new Error(`the console: ${JSON.stringify(this.#text.slice(-1_000))}`, { cause });
    });
  }

  /** Runs one line; gives back what it printed. */
  async type(line: string): Promise<string> {
    const start = this.#text.length;
    // The echo of what is typed has quotes within the marks.
    this.write(`echo be''gin; ${line}; echo e''nd\n`);
    const printed = await until(
      `"${line}" to end in the guest`,
      () => /begin\r\n([^]*?)end\r\n/.exec(this.#text.slice(start))?.[1],
      bootLimitMs,
    );
    return printed.replaceAll('\r', '');
  }
}
