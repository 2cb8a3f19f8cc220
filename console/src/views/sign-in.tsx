import type { JSX } from 'preact';
import { useEffect, useRef, useState } from 'preact/hooks';
import { signIn } from '../session.ts';

export const SignIn = ({ why }: { readonly why: string | undefined }): JSX.Element => {
  const field = useRef<HTMLInputElement>(null);
  const [problem, setProblem] = useState<string>();
  const [isBusy, setBusy] = useState(false);
  useEffect(() => {
    document.title = 'Sign in – Porthole';
    field.current?.focus();
  }, []);
  const submit = async (): Promise<void> => {
    setBusy(true);
    setProblem(undefined);
    try {
      await signIn(field.current!.value.trim());
    } catch (error) {
      setProblem((error as Error).message);
      setBusy(false);
      field.current?.select();
    }
  };
  return (
    <main class="alone" id="main">
      <form
        class="sign-in"
        aria-label="Sign in"
        onSubmit={(event) => {
          event.preventDefault();
          void submit();
        }}
      >
        <h1>
          <img src="/porthole.svg" alt="" width="32" height="32" /> Porthole
        </h1>
        {why !== undefined && (
          <p class="note" role="status">
            {why}
          </p>
        )}
        <label class="field">
          API key
          <input
            ref={field}
            type="password"
            name="key"
            autocomplete="current-password"
            spellcheck={false}
            required
            placeholder="ph_…"
            aria-invalid={problem !== undefined}
            aria-describedby={problem === undefined ? undefined : 'sign-in-problem'}
          />
        </label>
        {problem !== undefined && (
          <p class="bad-text" id="sign-in-problem" role="alert">
            {problem}
          </p>
        )}
        <button type="submit" class="primary" disabled={isBusy}>
          {isBusy ? 'Signing in …' : 'Sign in'}
        </button>
        <details>
          <summary>Where do I get a key?</summary>
          <p>On the machine that runs Porthole:</p>
          <pre>
            <code>porthole key create "my browser" --role admin</code>
          </pre>
          <p>
            Roles are <em>viewer</em>, <em>operator</em> and <em>admin</em>. Your browser keeps a session, not the key;
            it ends with the key, after 12 hours without use, or when you sign out.
          </p>
        </details>
      </form>
    </main>
  );
};
