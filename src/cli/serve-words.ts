/** What `porthole serve` says. */
import {
  formatProblem,
  formatProblems,
  mountCommand,
  type Paint,
  qemuArguments,
  type ServeEvent,
  SpecError,
} from '../host/index.ts';

/** One event in words: where to, and the text without a last newline. */
export const inWords = (event: ServeEvent, paint: Paint): { readonly to: 'out' | 'err'; readonly text: string } => {
  const out = (text: string) => ({ to: 'out', text }) as const;
  const err = (text: string) => ({ to: 'err', text }) as const;
  switch (event.event) {
    case 'loaded':
      return out(`${event.vm}: ${event.nodes} nodes of ${event.file}, revision ${event.revision}`);
    case 'warning':
      return err(formatProblem(event.problem, paint));
    case 'ready':
      return out(readyWords(event.target));
    case 'failed':
      return err(`serving on "${event.target.path}" failed: ${event.reason}`);
    case 'target':
      return out(`${event.target.path}: ${event.what}${event.detail === '' ? '' : ` (${event.detail})`}`);
    case 'reloaded':
      return out(
        `reloaded: ${changesInWords(event.changes)}, revision ${event.revision}${event.applied ? '' : ' (not applied yet)'}`,
      );
    case 'rejected':
      return err(`${rejection(event.error, paint)}\nthe tree stays as it was`);
    case 'mended':
      return out(`nothing wrong any more; the tree is as it was, revision ${event.revision}`);
    case 'device-ended':
      return err(
        `the device process ended: ${event.reason}\nstarting another in ${event.restartInMs / 1000} s; mounts come back by themselves, 9P clients must mount again, a VM on a vhost-user socket must be restarted (QEMU cannot reconnect)`,
      );
    case 'trouble':
      return err(event.what);
    case 'stopped':
      return out('stopped');
  }
};

const changesInWords = (changes: number): string => {
  if (changes === 0) return 'the rules changed';
  return `${changes} ${changes === 1 ? 'path' : 'paths'} changed`;
};

const rejection = (error: SpecError | Error, paint: Paint): string =>
  error instanceof SpecError ? formatProblems(error.problems, paint) : error.message;

/** The same for programs: one JSON object a line. */
export const asJson = (event: ServeEvent): string => {
  if (event.event === 'rejected') {
    const { error } = event;
    return JSON.stringify({
      event: 'rejected',
      message: error.message,
      problems: error instanceof SpecError ? error.problems : [],
    });
  }
  if (event.event === 'ready' && event.target.kind === 'vhost-user') {
    return JSON.stringify({ ...event, qemu: qemuArguments(event.target.path, memory), guest: mountCommand });
  }
  return JSON.stringify(event);
};

const readyWords = ({ kind, path }: Extract<ServeEvent, { event: 'ready' }>['target']): string => {
  if (kind === 'mount') return `mounted on ${path}`;
  if (kind === 'vhost-user') return vhostUserWords(path);
  return `listening for 9P clients on ${path}`;
};

/** Said by way of example. */
const memory = '1G';

const vhostUserWords = (socket: string): string => {
  const words = qemuArguments(socket, memory).map(shellQuoted);
  const pairs = Array.from({ length: words.length / 2 }, (_, i) => `${words[2 * i]} ${words[2 * i + 1]}`);
  return `listening on ${socket}
  QEMU (the guest's memory after size= and -m, the same in both):
    ${pairs.join(' \\\n    ')}
  in the guest:
    mkdir -p /run/metadata
    ${mountCommand}`;
};

export const shellQuoted = (word: string): string =>
  /^[\w./:=,@%+-]+$/.test(word) ? word : `'${word.replaceAll("'", String.raw`'\''`)}'`;
