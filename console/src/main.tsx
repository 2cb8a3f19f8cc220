import { render } from 'preact';
import { App } from './app.tsx';
import { path, replace } from './router.ts';
import { lookForSession } from './session.ts';
import { home } from './views/index.ts';

if (path.value === '/') replace(home);
render(<App />, document.getElementById('app')!);
void lookForSession();
