/** What a guest's programs say to a metadata server, in the words of a shell, and what it says to them. */

/** A request, in the words of printf(1). */
export const requestOf = (method: string, path: string, { body = '', token = '', headers = '' } = {}): string =>
  [
    `${method} ${path} HTTP/1.1`,
    'Host: 169.254.169.254',
    'Connection: close',
    ...(headers === '' ? [] : [headers]),
    ...(token === '' ? [] : [`Authorization: Bearer ${token}`]),
    ...(body === '' ? [] : ['Content-Type: application/json', `Content-Length: ${body.length}`]),
    '',
    body,
  ].join(String.raw`\r\n`);

export const claimOf = (nonce: string): string =>
  requestOf('POST', '/porthole/v1/token', { body: JSON.stringify({ nonce: nonce.repeat(22) }) });

export const overNetwork = (request: string): string => `printf '${request}' | nc 169.254.169.254 80`;

/** Frames on the port: SYNC, a connection, the request; then a line of the answer. What comes after it is left unread. */
export const overSerial = (request: string, line: string): string =>
  [
    'for d in /sys/class/virtio-ports/*; do [ "$(cat $d/name)" = org.porthole.metadata ] && P=/dev/${d##*/}; done',
    'exec 7<>$P',
    String.raw`printf '\300\000\000\0000123456789abcdef\300\001\000\001\300\002\000\001${request}\300' >&7`,
    `grep -a -m1 ${line} <&7`,
    'exec 7>&-',
  ].join('; ');

export const statusOf = (printed: string): number => Number(/HTTP\/1\.1 (\d{3})/.exec(printed)?.[1]);
