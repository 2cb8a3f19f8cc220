/** Source ports that take privilege: whoever is asked for a token over TCP or vsock looks at that. */
const FIRST = 600;
const LAST = 1023;

export const privilegedPort = (): number => FIRST + Math.floor(Math.random() * (LAST - FIRST + 1));
