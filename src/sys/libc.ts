/**
 * The bindings to libc, and the only file of the project that touches FFI. Each binding is as C declares it; the typed
 * functions of this room stand in front of them. Pointers into our own memory are passed as typed arrays (koffi hands
 * their address over without a copy), addresses of mappings as numbers (user space ends below 2^47 on x86-64 and 2^52 on
 * arm64), so no BigInt is made on a call.
 */
import koffi from 'koffi';

const libc = koffi.load('libc.so.6');

/** Declares one function of libc. */
const bind = <F extends (...args: never[]) => unknown>(declaration: string): F =>
  libc.func(declaration) as unknown as F;

/**
 * A pointer argument. Must stand on an ArrayBuffer that was made as such (`new Uint8Array(n)` up to 64 bytes may lie on the
 * moving heap until its `buffer` is asked for; koffi asks).
 */
type Pointer = ArrayBufferView | null;
type Call<A extends unknown[]> = (...args: A) => number;

export const read = bind<Call<[number, Pointer, number]>>('long read(int fd, void *buf, size_t n)');
export const write = bind<Call<[number, Pointer, number]>>('long write(int fd, const void *buf, size_t n)');
export const close = bind<Call<[number]>>('int close(int fd)');
export const fcntl = bind<Call<[number, number, number]>>('int fcntl(int fd, int cmd, long arg)');
export const flock = bind<Call<[number, number]>>('int flock(int fd, int operation)');
export const fstat = bind<Call<[number, Pointer]>>('int fstat(int fd, void *buf)');
export const statx = bind<Call<[number, string, number, number, Pointer]>>(
  'int statx(int dirfd, const char *path, int flags, unsigned int mask, void *buf)',
);
export const ftruncate = bind<Call<[number, number]>>('int ftruncate(int fd, int64_t length)');
export const fallocate = bind<Call<[number, number, number, number]>>(
  'int fallocate(int fd, int mode, int64_t offset, int64_t length)',
);
export const poll = bind<Call<[Pointer, number, number]>>('int poll(void *fds, unsigned long n, int timeout)');

/** Arguments that a call does not take are passed as 0 and never looked at. */
export const syscall = bind<Call<[number, number, number, number, number]>>(
  'long syscall(long number, long a, long b, long c, long d)',
);

export const epollCreate1 = bind<Call<[number]>>('int epoll_create1(int flags)');
export const epollCtl = bind<Call<[number, number, number, Pointer]>>('int epoll_ctl(int e, int op, int fd, void *ev)');
export const epollWait = bind<Call<[number, Pointer, number, number]>>('int epoll_wait(int e, void *ev, int n, int t)');

export const eventfd = bind<Call<[number, number]>>('int eventfd(unsigned int value, int flags)');
export const timerfdCreate = bind<Call<[number, number]>>('int timerfd_create(int clock, int flags)');

export const memfdCreate = bind<Call<[string, number]>>('int memfd_create(const char *name, unsigned int flags)');
export const mmap = bind<Call<[number, number, number, number, number, number]>>(
  'int64_t mmap(int64_t addr, size_t length, int prot, int flags, int fd, int64_t offset)',
);
export const munmap = bind<Call<[number, number]>>('int munmap(int64_t addr, size_t length)');

export const socket = bind<Call<[number, number, number]>>('int socket(int domain, int type, int protocol)');
export const socketpair = bind<Call<[number, number, number, Pointer]>>(
  'int socketpair(int d, int t, int p, void *sv)',
);
export const bindSocket = bind<Call<[number, Pointer, number]>>('int bind(int fd, const void *addr, unsigned int n)');
export const listen = bind<Call<[number, number]>>('int listen(int fd, int backlog)');
export const accept4 = bind<Call<[number, Pointer, Pointer, number]>>(
  'int accept4(int fd, void *a, void *n, int flags)',
);
export const connect = bind<Call<[number, Pointer, number]>>('int connect(int fd, const void *addr, unsigned int n)');
export const shutdown = bind<Call<[number, number]>>('int shutdown(int fd, int how)');
export const send = bind<Call<[number, Pointer, number, number]>>(
  'long send(int fd, const void *buf, size_t n, int flags)',
);

export const getsockopt = bind<Call<[number, number, number, Pointer, Pointer]>>(
  'int getsockopt(int fd, int level, int name, void *value, void *length)',
);

export const setsockopt = bind<Call<[number, number, number, Pointer, number]>>(
  'int setsockopt(int fd, int level, int name, const void *value, unsigned int length)',
);
export const getpeername = bind<Call<[number, Pointer, Pointer]>>('int getpeername(int fd, void *addr, void *length)');

export const mount = bind<Call<[string, string, string, number, string | null]>>(
  'int mount(const char *source, const char *target, const char *type, unsigned long flags, const char *data)',
);
export const umount2 = bind<Call<[string, number]>>('int umount2(const char *target, int flags)');

/** struct iovec, twice: what `writev` and `readv` take here. koffi lays the fields out at the call, without BigInt. */
koffi.struct('iovec2', { base0: 'void *', length0: 'size_t', base1: 'void *', length1: 'size_t' });
export interface IoVectors {
  base0: ArrayBufferView;
  length0: number;
  base1: ArrayBufferView;
  length1: number;
}
export const writev = bind<Call<[number, IoVectors, number]>>('long writev(int fd, iovec2 *iov, int n)');

/** struct msghdr (bits/socket.h), pointers to one struct iovec included. */
koffi.struct('iovec1', { base: 'void *', length: 'size_t' });
koffi.struct('msghdr', {
  name: 'void *',
  nameLength: 'unsigned int',
  iov: 'iovec1 *',
  iovLength: 'size_t',
  control: 'void *',
  controlLength: 'size_t',
  flags: 'int',
});
export interface MessageHeader {
  name: null;
  nameLength: number;
  iov: { base: ArrayBufferView; length: number };
  iovLength: number;
  control: ArrayBufferView | null;
  controlLength: number;
  flags: number;
}
export const sendmsg = bind<Call<[number, MessageHeader, number]>>('long sendmsg(int fd, msghdr *m, int flags)');
export const recvmsg = bind<Call<[number, MessageHeader, number]>>(
  'long recvmsg(int fd, _Inout_ msghdr *m, int flags)',
);

/** One ArrayBuffer over `length` bytes at `address`, in memory that V8 neither owns nor frees. */
export const viewOf = (address: number, length: number): ArrayBuffer => koffi.view(BigInt(address), length);

/** A libc result as the rest of the project wants it: not negative, or the negative errno. */
export const result = (value: number): number => (value === -1 ? -koffi.errno() : value);

/** The fd on which libuv's loop of this thread waits (an epoll fd, which can be watched by another), or -1. */
export function uvBackendFd(): number {
  const node = koffi.load(null);
  const getLoop = node.func('int napi_get_uv_event_loop(void *env, _Out_ void **loop)');
  const backendFd = node.func('int uv_backend_fd(void *loop)');
  const loop: unknown[] = [null];
  if (getLoop(koffi.node.env, loop) !== 0) return -1;
  return backendFd(loop[0]) as number;
}
