/** Waits for work that the API does, shows how far it is, and cancels it at Ctrl-C where it can be. */
import { ClientError } from '../cluster/client/index.ts';
import type { Api } from './api.ts';
import { Progress } from './progress.ts';
import { Interrupted } from './prompt.ts';
import type { Operation } from './shapes.ts';
import type { Terminal } from './terminal.ts';

/** Of a request to cancel, so that Ctrl-C ends even when nobody answers. */
const cancelMs = 5_000;

export const isFinished = ({ state }: Operation): boolean => state !== 'pending' && state !== 'running';

export const subject = ({ target: { name, version } }: Operation): string =>
  version === undefined ? name : `${name}:${version}`;

/** "vm.create" as "creating". */
const doing: Readonly<Record<string, string>> = {
  'vm.create': 'creating',
  'vm.start': 'starting',
  'vm.stop': 'stopping',
  'vm.reboot': 'rebooting',
  'vm.delete': 'deleting',
  'vms.create': 'creating',
  'vms.start': 'starting',
  'vms.stop': 'stopping',
  'vms.reboot': 'rebooting',
  'vms.delete': 'deleting',
  'image.add': 'adding',
  'image.remove': 'removing',
  'key.rotate': 'rotating',
  'host.drain': 'draining',
};

export const title = (operation: Operation): string =>
  `${doing[operation.kind] ?? operation.kind} ${subject(operation)}`;

/** Throws when it failed or was cancelled. */
export const finished = async (api: Api, begun: Operation, terminal: Terminal): Promise<Operation> => {
  const operation = isFinished(begun) ? begun : await follow(api, begun, terminal);
  if (operation.state === 'succeeded') return operation;
  const { code, detail } = operation.error ?? { code: 'INTERNAL', detail: operation.state };
  throw new Error(
    `${title(operation)} ${operation.state === 'failed' ? `failed: ${detail}` : `was cancelled`} (${code})`,
  );
};

const follow = async (api: Api, begun: Operation, terminal: Terminal): Promise<Operation> => {
  const progress = new Progress(terminal, title(begun), begun.kind.startsWith('image.') ? 'bytes' : 'steps');
  try {
    progress.tell(begun);
    const events = await api.stream('watchOperation', {
      params: { id: begun.id },
      onBreak: (isBack) => {
        if (!isBack) progress.tell({ step: 'the connection was lost, trying again', done: 0 });
      },
    });
    for await (const { event, data } of events) {
      if (event !== 'operation') continue;
      const operation = data as Operation;
      if (isFinished(operation)) return operation;
      progress.tell(operation);
    }
    throw new Error(`the operation "${begun.id}" went on unseen; "porthole operation show ${begun.id}" tells of it`);
  } catch (error) {
    if (!terminal.interrupted.aborted) throw error;
    progress.end();
    terminal.err(
      `${await cancelled(api.under(AbortSignal.any([terminal.forced, AbortSignal.timeout(cancelMs)])), begun)}\n`,
    );
    throw new Interrupted();
  } finally {
    progress.end();
  }
};

/** Cancels it, and says what came of that. */
const cancelled = async (api: Api, operation: Operation): Promise<string> => {
  const { id } = operation;
  const shows = `"porthole operation show ${id}" tells how it goes`;
  try {
    await api.call('cancelOperation', { params: { id } });
    return `${title(operation)}: cancelled`;
  } catch (error) {
    if (error instanceof ClientError) return `${title(operation)} goes on: ${error.message}; ${shows}`;
    return `${title(operation)}: it could not be cancelled, as the API does not answer; ${shows}`;
  }
};
