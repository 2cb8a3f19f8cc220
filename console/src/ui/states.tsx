/** What a view shows when it has nothing to show. */
import type { ComponentChildren, JSX } from 'preact';

export const Loading = ({ what }: { readonly what: string }): JSX.Element => (
  <div class="state" role="status">
    <span class="spinner" aria-hidden="true" />
    Loading {what} …
  </div>
);

export const Empty = ({
  title,
  children,
}: {
  readonly title: string;
  readonly children?: ComponentChildren;
}): JSX.Element => (
  <div class="state">
    <h2>{title}</h2>
    {children}
  </div>
);

export const Failure = ({
  title,
  detail,
  again,
}: {
  readonly title: string;
  readonly detail: string;
  readonly again?: () => void;
}): JSX.Element => (
  <div class="state" role="alert">
    <h1>{title}</h1>
    <p>{detail}</p>
    {again && (
      <button type="button" onClick={again}>
        Try again
      </button>
    )}
  </div>
);
