import type { Socket } from 'node:net';
import { nameOf } from '../identity.ts';
import { ApiError } from '../problem.ts';
import * as routes from '../routes/index.ts';
import type { OutgoingBackup } from '../upkeep.ts';
import { type Api, answerOf, identityOf, onceRequest, send, serve } from './serve.ts';
import { operationView } from './vms.ts';

export const serveStore = (api: Api): void => {
  const { upkeep, idempotency } = api.manager;

  serve(api, routes.createBackup, async (c) => {
    const identity = identityOf(c);
    const opened = api.streams.open(nameOf(identity), [c.req.raw.signal, ...(identity.ended ? [identity.ended] : [])]);
    try {
      const backup = await patiently(c.env.incoming.socket, () => upkeep.backup());
      return new Response(
        bodyOf(backup, opened, () => c.env.outgoing.destroy()),
        {
          headers: {
            'content-type': 'application/octet-stream',
            'content-length': String(backup.sizeBytes),
            'cache-control': 'no-store',
          },
        },
      );
    } catch (error) {
      opened.close();
      throw error;
    }
  });

  serve(api, routes.rotateKeys, async (c) => {
    const { keyFile } = c.req.valid('json');
    if (keyFile !== undefined && !c.get('isLocal'))
      throw new ApiError('FORBIDDEN', 'a key file of the host can be named over its unix socket only');
    const { account } = identityOf(c);
    const answer = await idempotency.run(await onceRequest(c), (commit) =>
      upkeep.rotate(account, keyFile, commit, (operation) =>
        answerOf(routes.rotateKeys, 202, operationView(operation), { location: `/v1/operations/${operation.id}` }),
      ),
    );
    return send(answer);
  });
};

/** Nothing moves on the connection while a copy of the stores is made, which takes what it takes. */
const patiently = async <T>(socket: Socket, run: () => Promise<T>): Promise<T> => {
  const idleMs = socket.timeout ?? 0;
  socket.setTimeout(0);
  try {
    return await run();
  } finally {
    socket.setTimeout(idleMs);
  }
};

/** Closes the backup at its end, when nobody takes it any more, and when `signal` ends it, which breaks the connection. */
const bodyOf = (
  backup: OutgoingBackup,
  { signal, close }: { readonly signal: AbortSignal; readonly close: () => void },
  cutOff: () => void,
): ReadableStream<Uint8Array<ArrayBuffer>> => {
  const end = async (): Promise<void> => {
    signal.removeEventListener('abort', abort);
    close();
    await backup[Symbol.asyncDispose]();
  };
  const abort = (): void => {
    cutOff();
    void end();
  };
  signal.addEventListener('abort', abort);
  if (signal.aborted) abort();
  return new ReadableStream(
    {
      pull: async (controller) => {
        try {
          signal.throwIfAborted();
          const piece = await backup.read();
          if (piece !== undefined) return controller.enqueue(piece);
          await end();
          controller.close();
        } catch (error) {
          cutOff();
          await end();
          controller.error(error);
        }
      },
      cancel: end,
    },
    { highWaterMark: 0 },
  );
};
