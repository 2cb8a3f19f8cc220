import assert from 'node:assert/strict';
import { parseAsked } from '../../src/imds/gce.ts';
import { Rejection } from '../../src/imds/limits.ts';
import { parseBody } from '../../src/imds/native.ts';
import { batchInput } from '../../src/imds/native-routes.ts';
import { inputs } from '../../src/imds/native-schemas.ts';
import { parseTtl, SessionTokens } from '../../src/imds/session-token.ts';
import { parseTarget, targetLimits } from '../../src/imds/target.ts';

const schemas = [...Object.values(inputs), batchInput];
const sessions = new SessionTokens(
  () => new Uint8Array(32),
  () => 0,
);

/** Reads `bytes` as whatever a client of a metadata server may send: a request line, headers, a body. */
export const fuzzImds = (bytes: Uint8Array): void => {
  const text = Buffer.from(bytes).toString('latin1');
  for (const line of [text, `/${text}`, `/computeMetadata/v1/?${text}`]) {
    const target = parseTarget(line);
    if (target === undefined) continue;
    assert.ok(target.names.length <= targetLimits.names && target.query.size <= targetLimits.queryKeys);
    for (const name of target.names)
      assert.ok(name !== '' && name !== '.' && name !== '..' && !/[/\0]/.test(name), name);
    const asked = parseAsked(target.query);
    assert.ok(asked === undefined || (asked.timeoutSeconds >= 0 && asked.timeoutSeconds <= 300));
  }
  const ttl = parseTtl(text);
  assert.ok(ttl === undefined || (Number.isInteger(ttl) && ttl >= 1 && ttl <= 21_600));
  assert.equal(sessions.isValid(text), false, 'nobody guesses a session');
  for (const schema of schemas) {
    try {
      parseBody(schema, bytes);
    } catch (error) {
      if (!(error instanceof Rejection && error.status === 400)) throw error;
    }
  }
};
