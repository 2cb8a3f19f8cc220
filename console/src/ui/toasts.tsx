/** What was asked for and how it goes, at the corner of the page; and what went wrong. */
import { signal } from '@preact/signals';
import type { JSX } from 'preact';
import { useEffect, useState } from 'preact/hooks';
import { call, type Operation, type ResultOf } from '../api.ts';
import { learn, operationOf } from '../live.ts';
import { OperationBadge } from './badge.tsx';

type Toast =
  | { readonly id: string; readonly kind: 'problem'; readonly title: string; readonly detail: string }
  | { readonly id: string; readonly kind: 'operation'; readonly title: string; readonly operation: string };

const toasts = signal<readonly Toast[]>([]);
const most = 5;
let made = 0;

const show = (toast: Toast): void => {
  toasts.value = [...toasts.value, toast].slice(-most);
};
const dismiss = (id: string): void => {
  toasts.value = toasts.value.filter((toast) => toast.id !== id);
};

export const complain = (title: string, error: unknown): void =>
  show({
    id: `problem-${made++}`,
    kind: 'problem',
    title,
    detail: error instanceof Error ? error.message : String(error),
  });

/** Follows it to its end. */
export const tell = (title: string, operation: Operation): void => {
  learn(operation);
  show({ id: operation.id, kind: 'operation', title, operation: operation.id });
};

export const Toasts = (): JSX.Element => (
  <section class="toasts" aria-label="Activity" aria-live="polite">
    {toasts.value.map((toast) => (
      <article class="toast" key={toast.id} aria-label={toast.title}>
        <header>
          <strong>{toast.title}</strong>
          <button
            type="button"
            class="quiet close"
            aria-label={`Dismiss “${toast.title}”`}
            onClick={() => dismiss(toast.id)}
          >
            ×
          </button>
        </header>
        {toast.kind === 'problem' ? <p class="bad-text">{toast.detail}</p> : <Progress id={toast.operation} />}
      </article>
    ))}
  </section>
);

const Progress = ({ id }: { readonly id: string }): JSX.Element | null => {
  const operation = operationOf(id);
  if (operation === undefined) return null;
  const { state, step, done, total, failed = 0, error, kind } = operation;
  const isMany = kind.startsWith('vms.');
  return (
    <>
      <p class="progress">
        <OperationBadge state={state} />
        {total !== undefined && (
          <span>
            {done} of {total}
            {failed > 0 && `, ${failed} failed`}
          </span>
        )}
        {step !== '' && <span>{step}</span>}
      </p>
      {total !== undefined && <progress max={total} value={done} aria-label="Progress" />}
      {error && <p class="bad-text">{error.detail}</p>}
      {isMany && failed > 0 && operation.finishedAt !== undefined && <Failures id={id} />}
    </>
  );
};

type OperationVm = ResultOf<'listOperationVms'>['vms'][number];

const failuresShown = 5;

const Failures = ({ id }: { readonly id: string }): JSX.Element => {
  const [failures, setFailures] = useState<readonly OperationVm[]>([]);
  useEffect(() => {
    call('listOperationVms', { params: { id }, query: { limit: 500 } }).then(
      ({ vms }) => setFailures(vms.filter(({ state }) => state === 'failed')),
      (error: unknown) => complain('What failed could not be asked for', error),
    );
  }, [id]);
  const over = failures.length - failuresShown;
  return (
    <ul class="failures">
      {failures.slice(0, failuresShown).map(({ name, error }) => (
        <li key={name}>
          <strong>{name}</strong>: {error?.detail ?? 'failed'}
        </li>
      ))}
      {over > 0 && <li>and {over} more</li>}
    </ul>
  );
};
