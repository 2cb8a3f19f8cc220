/** The `porthole` command beside a host daemon of a test. */
import { spawn } from 'node:child_process';
import { porthole } from '../cli/stage.ts';
import type { UpMachine } from './machine.ts';

export interface Ended {
  readonly code: number | null;
  readonly out: string;
  readonly err: string;
}

export const runPorthole = ({ directory }: UpMachine, ...args: readonly string[]): Promise<Ended> => {
  const [file, ...first] = porthole;
  const child = spawn(file, [...first, ...args], {
    cwd: directory,
    env: { PATH: process.env['PATH']!, HOME: directory, PORTHOLE_API: `unix:${directory}/run/api.sock` },
    stdio: ['ignore', 'pipe', 'pipe'],
    // A daemon that starts although it must not is no end: then this ends it, and the test sees another code.
    timeout: 60_000,
  });
  let out = '';
  let err = '';
  child.stdout.setEncoding('utf8').on('data', (text: string) => (out += text));
  child.stderr.setEncoding('utf8').on('data', (text: string) => (err += text));
  const { promise, resolve, reject } = Promise.withResolvers<Ended>();
  child.once('error', reject).once('close', (code) => resolve({ code, out, err }));
  return promise;
};
