/** Keys with which hosts enrol. */
import type { Enrolment, JoinKey } from '../../uplink/index.ts';
import { ApiError } from '../problem.ts';
import * as routes from '../routes/index.ts';
import { type Api, answerOf, noContent, onceRequest, reply, send, serve } from './serve.ts';
import { isoTime } from './vms.ts';

const view = ({ id, host, isUsed, createdAtMs, expiresAtMs }: JoinKey) => ({
  id,
  ...(host !== undefined && { host }),
  isUsed,
  createdAt: isoTime(createdAtMs),
  expiresAt: isoTime(expiresAtMs),
});

export const serveJoinKeys = (api: Api): void => {
  const { idempotency } = api.manager;
  const enrolment = (): Enrolment => {
    if (api.manager.enrolment !== undefined) return api.manager.enrolment;
    throw new ApiError(
      'UNSUPPORTED',
      'this daemon is manager and host in one; hosts enrol where a manager runs alone: porthole manager',
    );
  };

  serve(api, routes.createJoinKey, async (c) => {
    const { host, expiresInSeconds } = c.req.valid('json');
    const answer = await idempotency.run(await onceRequest(c), async (commit) => {
      const { key, text, operation } = enrolment().newKey(host, expiresInSeconds);
      const conditions = [{ key: operation.key, exists: false }];
      // What is kept for a repeat says that there is one, and not the secret.
      const known = { status: 409, headers: {}, body: JSON.stringify({ key: key.id }) };
      if (!(await commit({ conditions, operations: [operation] }, known)))
        throw new ApiError('CONFLICT', 'another request with the same Idempotency-Key was faster; try again');
      return answerOf(routes.createJoinKey, 201, { joinKey: view(key), text });
    });
    if (answer.status !== 409) return send(answer);
    const { key } = JSON.parse(answer.body) as { readonly key: string };
    throw new ApiError(
      'IDEMPOTENCY_SECRET',
      `this request made the join key "${key}" before; take it back and make another`,
    );
  });

  serve(api, routes.listJoinKeys, async () =>
    reply(routes.listJoinKeys, 200, { joinKeys: (await enrolment().keys()).map(view) }),
  );

  serve(api, routes.revokeJoinKey, async (c) => {
    const { id } = c.req.valid('param');
    const answer = await idempotency.run(await onceRequest(c), async (commit) => {
      const { conditions, operations } = enrolment().removal(id);
      if (await commit({ conditions, operations }, noContent)) return noContent;
      throw new ApiError('NOT_FOUND', `there is no join key "${id}"`);
    });
    return send(answer);
  });
};
