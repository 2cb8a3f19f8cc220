/** A status, told by a word, a shape and a color. */
import type { JSX } from 'preact';
import type { Operation, Vm } from '../api.ts';

type Tone = 'good' | 'busy' | 'off' | 'bad';

const tones = {
  creating: 'busy',
  starting: 'busy',
  running: 'good',
  stopping: 'busy',
  stopped: 'off',
  failed: 'bad',
  lost: 'bad',
  compromised: 'bad',
} as const satisfies Record<Vm['status'], Tone>;

const operationTones = {
  pending: 'busy',
  running: 'busy',
  succeeded: 'good',
  failed: 'bad',
  cancelled: 'off',
} as const satisfies Record<Operation['state'], Tone>;

const Badge = ({ tone, word }: { readonly tone: Tone; readonly word: string }): JSX.Element => (
  <span class={`badge ${tone}`}>{word}</span>
);

export const VmBadge = ({ status }: Pick<Vm, 'status'>): JSX.Element => <Badge tone={tones[status]} word={status} />;

export const OperationBadge = ({ state }: Pick<Operation, 'state'>): JSX.Element => (
  <Badge tone={operationTones[state]} word={state} />
);
