/** `porthole serve --mount` in a process of its own, and shell scripts run in directories below its `/guest`. */
import assert from 'node:assert/strict';
import { type ChildProcess, spawn } from 'node:child_process';
import { once } from 'node:events';
import { chmodSync, mkdirSync, mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import path from 'node:path';
import { createInterface } from 'node:readline';

export const toolsSpec = `porthole: 1
metadata:
  instance: { id: i-1 }
  secrets: { db-password: hunter2 }
  guest: {}
users: { postgres: 114, app: 1000 }
policy:
  - { path: /secrets/db-password, owner: postgres, mode: "0400" }
quota: { bytes: 64MiB, nodes: 20000 }
`;

interface ScriptOptions {
  readonly uid?: number;
  readonly timeoutMs?: number;
}

interface ScriptResult {
  readonly exitCode: number;
  readonly text: string;
  readonly errorText: string;
}

const porthole = path.join(import.meta.dirname, '../../porthole');

/** Environment in which tools say the same on every machine. */
const environment = {
  PATH: '/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin',
  LC_ALL: 'C.UTF-8',
  TZ: 'UTC',
  HOME: '/nonexistent',
  GIT_CONFIG_NOSYSTEM: '1',
  GIT_AUTHOR_NAME: 'A',
  GIT_AUTHOR_EMAIL: 'a@example.org',
  GIT_COMMITTER_NAME: 'A',
  GIT_COMMITTER_EMAIL: 'a@example.org',
};

export class ServedMount implements AsyncDisposable {
  /** Where the tree is mounted. */
  readonly directory: string;
  readonly #top: string;
  readonly #server: ChildProcess;
  #scripts = 0;

  private constructor(top: string, directory: string, server: ChildProcess) {
    this.#top = top;
    this.directory = directory;
    this.#server = server;
  }

  static async start(spec: string = toolsSpec): Promise<ServedMount> {
    const top = mkdtempSync(path.join(tmpdir(), 'porthole-tools-'));
    const directory = path.join(top, 'mount');
    chmodSync(top, 0o755); // users go through it
    mkdirSync(directory);
    writeFileSync(path.join(top, 'spec.yaml'), spec);
    const server = spawn(porthole, ['serve', path.join(top, 'spec.yaml'), '--mount', directory], {
      stdio: ['ignore', 'pipe', 'pipe'],
    });
    let said = '';
    server.stderr!.setEncoding('utf8').on('data', (text: string) => {
      said += text;
    });
    for await (const line of createInterface(server.stdout!)) {
      said += `${line}\n`;
      if (line === `mounted on ${directory}`) {
        server.stdout!.resume();
        return new ServedMount(top, directory, server);
      }
    }
    throw new Error(`porthole serve ended before it mounted; it said:\n${said}`);
  }

  /** Runs a bash script (`set -eu`) in a new directory below `/guest`, which belongs to `uid` (root). */
  async run(script: string, options: ScriptOptions = {}): Promise<ScriptResult> {
    const { uid = 0, timeoutMs = 60_000 } = options;
    const inside = path.join(this.directory, 'guest', `script-${++this.#scripts}`);
    const prepare = `mkdir '${inside}' && chown ${uid}:${uid} '${inside}' && cd '${inside}'`;
    const start = `exec setpriv --reuid ${uid} --regid ${uid} --clear-groups bash -euc "$1"`;
    const child = spawn('bash', ['-c', `${prepare} && ${start}`, 'bash', script], {
      env: { ...environment, HERE: inside, SCRATCH: this.#top },
      stdio: ['ignore', 'pipe', 'pipe'],
      timeout: timeoutMs,
      killSignal: 'SIGKILL',
    });
    let [text, errorText] = ['', ''];
    child.stdout.setEncoding('utf8').on('data', (chunk: string) => {
      text += chunk;
    });
    child.stderr.setEncoding('utf8').on('data', (chunk: string) => {
      errorText += chunk;
    });
    const [code, signal] = (await once(child, 'close')) as [number | null, string | null];
    assert.notEqual(
      code,
      null,
      `${script}\nwas ended by ${signal} after ${timeoutMs} ms; it said:\n${text}${errorText}`,
    );
    return { exitCode: code!, text, errorText };
  }

  /** As `run`, but any exit code but 0 is an error; gives the standard output. */
  async sh(script: string, options?: ScriptOptions): Promise<string> {
    const { exitCode, text, errorText } = await this.run(script, options);
    assert.equal(exitCode, 0, `${script}\nexited with ${exitCode}; it said:\n${text}${errorText}`);
    return text;
  }

  async [Symbol.asyncDispose](): Promise<void> {
    const ended = this.#server.exitCode === null ? once(this.#server, 'close') : undefined;
    this.#server.kill('SIGTERM');
    await ended;
    rmSync(this.#top, { recursive: true, force: true });
  }
}
