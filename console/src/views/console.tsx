import { Terminal } from '@xterm/xterm';
import type { JSX } from 'preact';
import { useEffect, useRef, useState } from 'preact/hooks';
import { ApiError, ask, eventsOf, type Vm } from '../api.ts';
import { may } from '../session.ts';
import { Empty } from '../ui/states.tsx';
import { makeStylesAllowed } from '../ui/terminal-styles.ts';
import { complain } from '../ui/toasts.tsx';
import { VmPage } from '../ui/vm-page.tsx';
import type { ViewProps } from './index.ts';

export default function ConsoleView({ params }: ViewProps): JSX.Element {
  return (
    <VmPage name={params['name']!}>
      {(vm) =>
        vm.kind === 'attached' ? (
          <Empty title="It has no console here">
            <p>Whoever runs its machine has its console.</p>
          </Empty>
        ) : may('operator') ? (
          <Console key={vm.id} vm={vm} />
        ) : (
          <Empty title="Your key may not see consoles">
            <p>That takes the role operator.</p>
          </Empty>
        )
      }
    </VmPage>
  );
}

/** Of what was printed before. */
const tailBytes = 64 * 1024;
const againAfterMs = 1_000;

const Console = ({ vm: { name } }: { readonly vm: Vm }): JSX.Element => {
  const place = useRef<HTMLDivElement>(null);
  const [isLive, setLive] = useState(false);
  useEffect(() => {
    const stop = new AbortController();
    const forbidStyles = makeStylesAllowed();
    const terminal = new Terminal({
      fontFamily: getComputedStyle(document.documentElement).getPropertyValue('--mono'),
      fontSize: 13,
      cols: 100,
      rows: 30,
      scrollback: 5_000,
      screenReaderMode: true,
    });
    terminal.open(place.current!);
    // What a guest prints is not to name the page, nor to be clicked on.
    terminal.parser.registerOscHandler(8, () => true);
    terminal.focus();
    const typing = typeInto(name, stop.signal);
    terminal.onData((text) => typing(new TextEncoder().encode(text)));
    terminal.onBinary((text) => typing(Uint8Array.from(text, (letter) => letter.charCodeAt(0))));
    void show(terminal, name, stop.signal, setLive);
    return () => {
      stop.abort();
      terminal.dispose();
      forbidStyles();
    };
  }, [name]);
  return (
    <section class="console-view" aria-label={`Console of ${name}`}>
      <p class="count" role="status">
        {isLive ? 'Live: what you type goes to the machine. Shift-Tab leaves.' : 'Connecting …'}
      </p>
      <div ref={place} />
    </section>
  );
};

/** One request after the other, so that it comes in order; what is typed meanwhile goes with the next. */
const typeInto = (name: string, signal: AbortSignal): ((bytes: Uint8Array) => void) => {
  let waiting: Uint8Array[] = [];
  let isBusy = false;
  const send = async (): Promise<void> => {
    isBusy = true;
    try {
      while (waiting.length > 0 && !signal.aborted) {
        const taken = waiting;
        waiting = [];
        const body = new Uint8Array(await new Blob(taken as Uint8Array<ArrayBuffer>[]).arrayBuffer());
        await ask('writeConsole', { params: { name }, body });
      }
    } catch (error) {
      waiting = [];
      complain('What you typed may not have come to the machine', error);
    } finally {
      isBusy = false;
    }
  };
  return (bytes) => {
    waiting.push(bytes);
    if (!isBusy) void send();
  };
};

const bytesOf = (base64: string): Uint8Array => Uint8Array.from(atob(base64), (letter) => letter.charCodeAt(0));

const show = async (
  terminal: Terminal,
  name: string,
  signal: AbortSignal,
  setLive: (isLive: boolean) => void,
): Promise<void> => {
  const params = { name };
  let offset: number | undefined;
  while (!signal.aborted) {
    try {
      if (offset === undefined) {
        const log = await ask('getConsole', { params, query: { tail: tailBytes }, signal });
        terminal.write(new Uint8Array(await log.arrayBuffer()));
        offset = Number(log.headers.get('console-end'));
      }
      const opened = (): void => setLive(true);
      for await (const { event, id, data } of eventsOf('streamConsole', {
        params,
        query: { offset },
        opened,
        signal,
      })) {
        if (event === 'output') terminal.write(bytesOf((data as { readonly base64: string }).base64));
        if (id !== undefined) offset = Number(id);
      }
    } catch (error) {
      if (signal.aborted) return;
      if (error instanceof ApiError && error.status >= 400 && error.status < 500)
        return complain(`The console of ${name} can’t be shown`, error);
    }
    setLive(false);
    await new Promise((resolve) => setTimeout(resolve, againAfterMs));
  }
  return undefined;
};
