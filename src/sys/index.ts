export * from './epoll.ts';
export * from './event-fds.ts';
export * from './fd.ts';
export * from './memory.ts';
export * from './mount.ts';
export * from './peer.ts';
export * from './pidfd.ts';
export * from './socket.ts';
