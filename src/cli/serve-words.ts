/** What `porthole serve` says. */
import { vsockPortOf } from '../device/index.ts';
import {
  formatProblem,
  formatProblems,
  mountCommand,
  ninepArguments,
  ninepMountCommand,
  type Paint,
  qemuArguments,
  qemuVsockArguments,
  type ServeEvent,
  SpecError,
  vsockOfOthers,
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
      return out(readyWords[event.target.kind](event.target.path));
    case 'http':
      return out(httpWords(event.address));
    case 'compromised':
      return err(
        `COMPROMISED: this boot's token was asked for a second time (${event.channel}) before it was used: somebody in the machine was faster than its agent, or came after it. Stop the machine.`,
      );
    case 'token-refused':
      return err(
        `this boot's token was asked for again (${event.channel}) and refused${event.dropped === 0 ? '' : `; so were ${event.dropped} more`}`,
      );
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

const httpWords = (address: string): string => {
  const [curl, base] = address.startsWith('unix:')
    ? [`curl --unix-socket ${shellQuoted(address.slice('unix:'.length))}`, 'http://localhost']
    : ['curl', address];
  return `metadata server on ${address}
  as GCE's:  ${curl} -H 'Metadata-Flavor: Google' '${base}/computeMetadata/v1/?recursive=true'
  NoCloud:   ${curl} ${base}/nocloud/meta-data`;
};

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
  if (event.event === 'ready' && event.target.kind === '9p') {
    const { path } = event.target;
    const others = isSocket(path) ? ofOthers(path) : undefined;
    if (others !== undefined) {
      const { mount: guest, ...monitors } = others;
      return JSON.stringify({ ...event, ...monitors, guest });
    }
    return JSON.stringify({
      ...event,
      ...(isSocket(path) && { qemu: ninepArguments(path) }),
      guest: ninepMountLine(path),
    });
  }
  if (event.event === 'ready' && event.target.kind === 'vhost-user') {
    return JSON.stringify({ ...event, qemu: qemuArguments(event.target.path, memory), guest: mountCommand });
  }
  if (event.event === 'ready' && event.target.kind === 'vsock') {
    return JSON.stringify({ ...event, qemu: qemuVsockArguments(event.target.path) });
  }
  return JSON.stringify(event);
};

/** Said by way of example. */
const memory = '1G';

const vsockWords = (socket: string): string => {
  const path = socket.replace(/\.vhost-user$/, '');
  return `listening on ${socket}
  QEMU (beside the guest's shared memory, as for --vhost-user):
    ${pairs(qemuVsockArguments(socket))}
  to a port of the guest: connect to ${path} and send "CONNECT <port>\\n"
  from the guest to port P of the host (CID 2): listen on ${path}_P`;
};

/** Each option with its value on a line of its own. */
const pairs = (given: readonly string[]): string => {
  const words = given.map(shellQuoted);
  return Array.from({ length: words.length / 2 }, (_, i) => `${words[2 * i]} ${words[2 * i + 1]}`).join(' \\\n    ');
};

const vhostUserWords = (socket: string): string => {
  return `listening on ${socket}
  QEMU (the guest's memory after size= and -m, the same in both):
    ${pairs(qemuArguments(socket, memory))}
  in the guest:
    mkdir -p /run/metadata
    ${mountCommand}`;
};

/** In the guest, the console is hvc1; by vsock and TCP who mounts must be privileged. */
const ninepMountLine = (where: string): string => {
  if (where.startsWith('vsock:')) return `mount -t porthole ${where} /run/metadata`;
  const tcp = /^tcp:\[?(.*?)\]?:(\d+)$/.exec(where);
  if (tcp === null) return ninepMountCommand;
  const options = `trans=tcp,port=${tcp[2]},privport,version=9p2000.L,cache=none,nosuid,nodev`;
  return `mount -t 9p -o ${options} ${tcp[1]} /run/metadata`;
};

const isSocket = (where: string): boolean => !/^(tcp|vsock):/.test(where);

/** Of a socket to which vsock devices connect that are not ours. */
const ofOthers = (socket: string): ReturnType<typeof vsockOfOthers> | undefined => {
  const port = vsockPortOf(socket);
  return port === undefined ? undefined : vsockOfOthers(socket.slice(0, socket.lastIndexOf('_')), port);
};

const ninepWords = (where: string): string => {
  const others = isSocket(where) ? ofOthers(where) : undefined;
  if (others === undefined) return plainNinepWords(where);
  return `listening for 9P clients on ${where}
  Cloud Hypervisor:
    ${pairs(others.cloudHypervisor)}
  Firecracker, PUT /vsock:
    ${JSON.stringify(others.firecracker)}
  in the guest, with this boot's token (docs/9p.md):
    ${others.mount}`;
};

const plainNinepWords = (where: string): string => `listening for 9P clients on ${where}
${isSocket(where) ? `  QEMU, for a console that speaks 9P:\n    ${pairs(ninepArguments(where))}\n` : ''}  in the guest (docs/9p.md):
    ${ninepMountLine(where)}`;

const readyWords = {
  mount: (path: string) => `mounted on ${path}`,
  'vhost-user': vhostUserWords,
  vsock: vsockWords,
  '9p': ninepWords,
} as const;

export const shellQuoted = (word: string): string =>
  /^[\w./:=,@%+-]+$/.test(word) ? word : `'${word.replaceAll("'", String.raw`'\''`)}'`;
