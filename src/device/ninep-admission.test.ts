import assert from 'node:assert/strict';
import { createHash } from 'node:crypto';
import { test } from 'node:test';
import { EACCES } from '../wire/index.ts';
import { Admission, BootToken } from './ninep-admission.ts';

const TOKEN = 'A'.repeat(43);
const sha256 = (text: string): Uint8Array => createHash('sha256').update(text).digest();
const asked = (aname: string) => ({ uname: 'nobody', aname, uid: 0 });
const hidden = { kind: 'program', sourcePort: undefined } as const;

function begin() {
  const used: string[] = [];
  const token = new BootToken((told) => used.push(Buffer.from(told).toString('hex')));
  token.become(sha256(TOKEN));
  let turnedOut = 0;
  const admission = (peer: ConstructorParameters<typeof Admission>[0] = hidden): Admission =>
    new Admission(peer, token, () => {
      turnedOut++;
    });
  return { token, used, admission, turnedOut: () => turnedOut };
}

test('Admission lets the hypervisor and privileged ports in, whatever they show', () => {
  const { used, admission } = begin();
  for (const peer of [{ kind: 'hypervisor' }, { kind: 'program', sourcePort: 1023 }] as const)
    assert.equal(admission(peer).attach(asked('token=wrong')), 0);
  for (const sourcePort of [undefined, 1024, 0xffff_ffff]) {
    const refused = admission({ kind: 'program', sourcePort });
    assert.equal(refused.attach(asked('/')), EACCES);
    assert.deepEqual([refused.isVouchedFor, refused.refused], [false, 1]);
  }
  assert.deepEqual(used, []);
});

test('Admission lets in who shows the token of this boot, with a path after it or not, and nothing like it', () => {
  const { used, admission } = begin();
  for (const aname of [`token=${TOKEN}`, `token=${TOKEN}/`, `token=${TOKEN}/instance`])
    assert.equal(admission().attach(asked(aname)), 0, aname);
  assert.deepEqual(new Set(used), new Set([Buffer.from(sha256(TOKEN)).toString('hex')]));
  for (const aname of [
    '',
    '/',
    TOKEN,
    'token=',
    `token=${TOKEN.slice(1)}`,
    `token=${TOKEN}A`,
    `token=${TOKEN}\0`,
    ` token=${TOKEN}`,
    `Token=${TOKEN}`,
    `/token=${TOKEN}`,
    `token=/${TOKEN}`,
    `token=${Buffer.from(sha256(TOKEN)).toString('hex')}`,
  ])
    assert.equal(admission().attach(asked(aname)), EACCES, aname);
});

test('Admission believes a connection that has shown the token, until the token is worth nothing', () => {
  const { token, admission, turnedOut } = begin();
  const one = admission();
  assert.equal(one.attach(asked('/')), EACCES);
  assert.equal(one.attach(asked(`token=${TOKEN}`)), 0);
  assert.equal(one.attach(asked('/')), 0, 'the guest’s kernel, to which the connection was handed');
  const ended = admission();
  assert.equal(ended.attach(asked(`token=${TOKEN}`)), 0);
  ended.end();
  token.become(sha256(TOKEN));
  assert.equal(turnedOut(), 0, 'told again by another daemon');
  token.become(sha256('another boot'));
  assert.equal(turnedOut(), 1, 'and who has left is not turned out');
  assert.equal(admission().attach(asked(`token=${TOKEN}`)), EACCES);
  token.become(undefined);
  assert.equal(admission().attach(asked('token=another boot')), EACCES);
});
