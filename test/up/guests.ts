/** What a test asks of VMs and of the guests in them, through a client. */
import assert from 'node:assert/strict';
import type { Client } from '../../src/cluster/index.ts';
import { until } from '../until.ts';

/** A guest boots in about 3 s where nothing else runs. */
export const bootLimitMs = 120_000;

export type Begun = { readonly id: string } | { readonly operation: { readonly id: string } };

/** Follows an operation to its end; fails with its error. */
export const done = async (client: Client, begun: Begun): Promise<void> => {
  const operation = 'operation' in begun ? begun.operation : begun;
  const { state, error } = await client.finished(operation.id, { signal: AbortSignal.timeout(bootLimitMs) });
  assert.equal(state, 'succeeded', `${error?.code}: ${error?.detail}`);
};

export const consoleOf = async (client: Client, name: string): Promise<string> =>
  (await client.raw('getConsole', { params: { name } })).bytes.toString();

/** Runs one line in the guest's shell on its console; gives back what it printed. */
export const typeTo = async (client: Client, name: string, line: string): Promise<string> => {
  const id = Math.random().toString(36).slice(2);
  const [begin, mark] = [`begin-${id}`, `done-${id}`];
  // The echo of what is typed, which may come more than once, has quotes within the marks.
  const say = (word: string): string => `echo ${word.slice(0, 4)}''${word.slice(4)}`;
  const typed = `${say(begin)}; ${line}${line.endsWith('&') ? '' : ';'} ${say(mark)}\n`;
  const before = (await consoleOf(client, name)).length;
  await client.call('writeConsole', { params: { name }, body: Buffer.from(typed) });
  let printed = '';
  const ended = async () => {
    printed = (await consoleOf(client, name)).slice(before);
    return printed.includes(mark);
  };
  await until(`"${line}" to end in the guest`, ended, bootLimitMs).catch((error: Error) => {
    error.message += `; its console says since: ${JSON.stringify(printed.slice(-2000))}`;
    throw error;
  });
  const start = printed.indexOf('\n', printed.indexOf(begin)) + 1;
  return printed.slice(start, printed.indexOf(mark)).replaceAll('\r', '');
};

export const untilReady = async (client: Client, name: string): Promise<void> => {
  await until(`the guest of ${name}`, async () => /tiny: ready[^]*# /.test(await consoleOf(client, name)), bootLimitMs);
};
