/** The frame: what is around every view. */
import type { ComponentType, JSX } from 'preact';
import { useEffect, useRef, useState } from 'preact/hooks';
import { connection } from './live.ts';
import { match, path } from './router.ts';
import { lookForSession, type Session, sessionState, signOut } from './session.ts';
import { type Theme, theme, themes } from './theme.ts';
import { Failure, Loading } from './ui/states.tsx';
import { complain, Toasts } from './ui/toasts.tsx';
import { home, type View, type ViewProps, views } from './views/index.ts';
import { SignIn } from './views/sign-in.tsx';

export const App = (): JSX.Element => {
  const state = sessionState.value;
  switch (state.is) {
    case 'unknown':
      return (
        <main class="alone" id="main">
          <Loading what="the console" />
        </main>
      );
    case 'unreachable':
      return (
        <main class="alone" id="main">
          <Failure title="The server does not answer" detail={state.why} again={lookForSession} />
        </main>
      );
    case 'out':
      return <SignIn why={state.why} />;
    case 'in':
      return <Frame session={state.session} />;
  }
};

const Frame = ({ session }: { readonly session: Session }): JSX.Element => (
  <div class="frame">
    <a class="skip" href="#main">
      Skip to content
    </a>
    <header class="bar">
      <a class="brand" href={home}>
        <img src="/porthole.svg" alt="" width="24" height="24" />
        Porthole
      </a>
      <nav aria-label="Main">
        <ul>
          {views
            .filter(({ inMenu }) => inMenu)
            .map(({ pattern, title }) => (
              <li key={pattern}>
                <a href={pattern} aria-current={path.value.startsWith(pattern) ? 'page' : undefined}>
                  {title}
                </a>
              </li>
            ))}
        </ul>
      </nav>
      <div class="bar-end">
        <ThemeSwitch />
        <Account session={session} />
      </div>
    </header>
    {connection.value === 'lost' && (
      <div class="banner" role="status">
        <strong>Not connected.</strong> What you see may be old. Trying again …
      </div>
    )}
    <Page />
    <Toasts />
  </div>
);

const ThemeSwitch = (): JSX.Element => (
  <label class="compact-select">
    <span class="hidden">Theme</span>
    <select
      value={theme.value}
      onChange={({ currentTarget }) => {
        theme.value = currentTarget.value as Theme;
      }}
    >
      {themes.map((one) => (
        <option key={one} value={one}>
          {{ system: 'Auto', light: 'Light', dark: 'Dark' }[one]}
        </option>
      ))}
    </select>
  </label>
);

const Account = ({ session }: { readonly session: Session }): JSX.Element => {
  const leave = (): void => void signOut().catch((error: unknown) => complain('You could not be signed out', error));
  return (
    <>
      <span class="who" title={`Key ${session.key ?? ''}`}>
        {session.role} of {session.account}
      </span>
      <button type="button" class="quiet" onClick={leave}>
        Sign out
      </button>
    </>
  );
};

const found = (address: string): { view: View; params: ViewProps['params'] } | undefined => {
  for (const view of views) {
    const params = match(view.pattern, address);
    if (params !== undefined) return { view, params };
  }
  return undefined;
};

const Page = (): JSX.Element => {
  const main = useRef<HTMLElement>(null);
  const address = path.value;
  const here = found(address);
  const isFirst = useRef(true);
  useEffect(() => {
    const name = here?.params['name'];
    document.title = `${name === undefined ? '' : `${name}: `}${here?.view.title ?? 'Not found'} – Porthole`;
    // Whoever follows a link with the keyboard or a screen reader goes on at the new view.
    if (!isFirst.current) main.current?.focus();
    isFirst.current = false;
  }, [address]);
  return (
    <main id="main" ref={main} tabIndex={-1}>
      {here === undefined ? (
        <Failure title="There is no such page" detail={`Nothing is at ${address}.`} />
      ) : (
        <Loaded key={here.view.pattern} view={here.view} params={here.params} />
      )}
    </main>
  );
};

/** A view comes when it is first needed. */
const Loaded = ({ view, params }: { readonly view: View } & ViewProps): JSX.Element => {
  const [loaded, setLoaded] = useState<{ readonly Shown: ComponentType<ViewProps> }>();
  const [error, setError] = useState<unknown>();
  useEffect(() => {
    let isGone = false;
    view.load().then(
      (module) => isGone || setLoaded({ Shown: module.default }),
      (reason: unknown) => isGone || setError(reason),
    );
    return () => {
      isGone = true;
    };
  }, [view]);
  if (error !== undefined)
    return (
      <Failure
        title="This page could not be loaded"
        detail="The console may have been updated."
        again={() => location.reload()}
      />
    );
  return loaded === undefined ? <Loading what={view.title} /> : <loaded.Shown params={params} />;
};
