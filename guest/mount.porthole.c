/*
 * Mounts a tree of Porthole by 9P, in a guest: over a virtio console (`/dev/hvc1`), vsock (`vsock:564`) or TCP
 * (`tcp:192.0.2.1:564`). It is a helper of mount(8), so that `mount -t porthole hvc1 /run/metadata` and a line in fstab(5) do.
 * It needs nothing of the guest but a kernel with 9P: build it static.
 *
 * With `token-file=PATH` it shows this boot's token itself and hands the connection to the kernel then: an `aname` of a mount
 * can be read by everybody in /proc/mounts.
 *
 * usage: mount.porthole [-v] SOURCE DIRECTORY [-o OPTIONS]
 *
 * Exit codes are mount(8)'s: 1 usage or rights, 2 the system can't, 32 the mount failed.
 */
#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/vm_sockets.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/ioctl.h>
#include <sys/mount.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <termios.h>
#include <time.h>
#include <unistd.h>

enum { USAGE = 1, SYSTEM = 2, MOUNT = 32 };

/* A write(2) of 64 KiB, which is one change of the tree, and Twrite's head. */
#define MSIZE 65560
/* No frame is longer: so many zeros end whatever frame an earlier user of the line has left unfinished, and break the next. */
#define LONGEST_FRAME (256 * 1024)
/* How long one answer may take, how long a hypervisor takes to connect the line again, and how long a line is quiet after. */
#define ANSWER_MS 3000
#define AGAIN_MS 1500
#define QUIET_MS 100
#define DEFAULT_TIMEOUT_S 30
/* Ports from which connecting takes privilege. */
#define LAST_PRIVILEGED_PORT 1023
#define FIRST_PRIVILEGED_PORT 512
#define TOKEN_BYTES 128

static int verbose;

__attribute__((format(printf, 2, 3), noreturn)) static void fail(int code, const char *format, ...) {
  va_list words;
  va_start(words, format);
  fputs("mount.porthole: ", stderr);
  vfprintf(stderr, format, words);
  fputc('\n', stderr);
  va_end(words);
  exit(code);
}

__attribute__((format(printf, 1, 2))) static void say(const char *format, ...) {
  if (!verbose) return;
  va_list words;
  va_start(words, format);
  fputs("mount.porthole: ", stderr);
  vfprintf(stderr, format, words);
  fputc('\n', stderr);
  va_end(words);
}

static long now_ms(void) {
  struct timespec now;
  clock_gettime(CLOCK_MONOTONIC, &now);
  return now.tv_sec * 1000 + now.tv_nsec / 1000000;
}

/* --- the line --- */

/* A console in raw mode that nobody else uses. */
static int open_console(const char *path) {
  int fd = open(path, O_RDWR | O_NOCTTY | O_NONBLOCK | O_CLOEXEC);
  if (fd < 0 && (errno == ENOENT || errno == ENXIO || errno == ENODEV))
    fail(SYSTEM, "there is no console %s: the machine was started without one for 9P, or its kernel has no virtio_console",
         path);
  if (fd < 0) fail(errno == EACCES ? USAGE : SYSTEM, "opening %s failed: %s", path, strerror(errno));
  struct termios raw;
  if (tcgetattr(fd, &raw) < 0) fail(USAGE, "%s is no console; give one like /dev/hvc1, vsock:PORT or tcp:ADDRESS:PORT", path);
  if (flock(fd, LOCK_EX | LOCK_NB) < 0) fail(MOUNT, "%s is in use; is it mounted already?", path);
  cfmakeraw(&raw);
  /* Who may write here could speak for any user. */
  if (tcsetattr(fd, TCSAFLUSH, &raw) < 0 || fchown(fd, 0, 0) < 0 || fchmod(fd, 0600) < 0 || ioctl(fd, TIOCEXCL) < 0)
    fail(SYSTEM, "preparing %s failed: %s", path, strerror(errno));
  return fd;
}

static int no_wait(int fd) {
  int flags = fcntl(fd, F_GETFL);
  if (flags < 0 || fcntl(fd, F_SETFL, flags | O_NONBLOCK) < 0) fail(SYSTEM, "O_NONBLOCK: %s", strerror(errno));
  return fd;
}

/* Connections come from a port that only root can use: from others nobody is believed. */
static int open_vsock(unsigned cid, unsigned port) {
  int fd = socket(AF_VSOCK, SOCK_STREAM | SOCK_CLOEXEC, 0);
  if (fd < 0) fail(SYSTEM, "this kernel has no vsock (modprobe vmw_vsock_virtio_transport): %s", strerror(errno));
  struct sockaddr_vm own = {.svm_family = AF_VSOCK, .svm_cid = VMADDR_CID_ANY, .svm_port = LAST_PRIVILEGED_PORT};
  while (bind(fd, (struct sockaddr *)&own, sizeof own) < 0) {
    if (errno != EADDRINUSE || own.svm_port <= FIRST_PRIVILEGED_PORT)
      fail(SYSTEM, "taking a vsock port below 1024 failed: %s", strerror(errno));
    own.svm_port--;
  }
  struct sockaddr_vm host = {.svm_family = AF_VSOCK, .svm_cid = cid, .svm_port = port};
  if (connect(fd, (struct sockaddr *)&host, sizeof host) < 0)
    fail(SYSTEM, errno == ENODEV ? "this machine has no vsock device to its host (port %u): %s"
                                 : "nobody serves 9P on vsock port %u: %s", port, strerror(errno));
  return no_wait(fd);
}

/* `where` is ADDRESS:PORT, an IPv6 address in brackets. */
static int open_tcp(const char *where) {
  char address[INET6_ADDRSTRLEN];
  unsigned port;
  int length = 0, is_six = 0;
  struct sockaddr_in6 six = {.sin6_family = AF_INET6};
  struct sockaddr_in four = {.sin_family = AF_INET};
  if (sscanf(where, "[%45[0-9a-fA-F:.]]:%5u%n", address, &port, &length) == 2 && !where[length])
    is_six = inet_pton(AF_INET6, address, &six.sin6_addr) == 1;
  else if (sscanf(where, "%45[0-9.]:%5u%n", address, &port, &length) != 2 || where[length] ||
           inet_pton(AF_INET, address, &four.sin_addr) != 1)
    length = 0;
  if (!length || port < 1 || port > 65535 || (*where == '[' && !is_six))
    fail(USAGE, "\"tcp:%s\" is no address and port; write tcp:192.0.2.1:564 or tcp:[2001:db8::1]:564", where);
  six.sin6_port = four.sin_port = htons((uint16_t)port);
  const struct sockaddr *host = is_six ? (struct sockaddr *)&six : (struct sockaddr *)&four;
  socklen_t host_length = is_six ? sizeof six : sizeof four;
  for (int own_port = LAST_PRIVILEGED_PORT; own_port >= FIRST_PRIVILEGED_PORT; own_port--) {
    int fd = socket(host->sa_family, SOCK_STREAM | SOCK_CLOEXEC, 0), on = 1;
    if (fd < 0) fail(SYSTEM, "making a socket failed: %s", strerror(errno));
    struct sockaddr_in6 own_six = {.sin6_family = AF_INET6, .sin6_port = htons((uint16_t)own_port)};
    struct sockaddr_in own_four = {.sin_family = AF_INET, .sin_port = htons((uint16_t)own_port)};
    const struct sockaddr *own = is_six ? (struct sockaddr *)&own_six : (struct sockaddr *)&own_four;
    if (bind(fd, own, host_length) == 0 && connect(fd, host, host_length) == 0) {
      setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
      return no_wait(fd);
    }
    /* Another connection has that port, or had it a moment ago. */
    if (errno != EADDRINUSE && errno != EADDRNOTAVAIL)
      fail(SYSTEM, "nobody serves 9P on tcp:%s: %s", where, strerror(errno));
    close(fd);
  }
  fail(SYSTEM, "taking a TCP port below 1024 failed: all are in use");
}

/* Writes all of it; 0 when it takes longer than `ms`, or the line ends. */
static int put(int fd, const unsigned char *data, size_t length, long ms) {
  long end = now_ms() + ms;
  while (length > 0) {
    ssize_t wrote = write(fd, data, length);
    if (wrote > 0) {
      data += wrote;
      length -= (size_t)wrote;
      continue;
    }
    if (wrote < 0 && errno != EAGAIN && errno != EINTR) return 0;
    struct pollfd one = {.fd = fd, .events = POLLOUT};
    long left = end - now_ms();
    if (left <= 0 || poll(&one, 1, (int)left) < 0) return 0;
  }
  return 1;
}

/* Reads up to `room` bytes; fewer when `ms` have gone, or the line ends. */
static size_t take(int fd, unsigned char *data, size_t room, long ms) {
  long end = now_ms() + ms;
  size_t got = 0;
  while (got < room) {
    ssize_t n = read(fd, data + got, room - got);
    if (n > 0) {
      got += (size_t)n;
      continue;
    }
    if (n == 0 || (errno != EAGAIN && errno != EINTR)) return got;
    struct pollfd one = {.fd = fd, .events = POLLIN};
    long left = end - now_ms();
    if (left <= 0 || poll(&one, 1, (int)left) <= 0) return got;
  }
  return got;
}

/* Reads until nothing has come for a while. */
static void drain(int fd) {
  unsigned char waste[4096];
  while (take(fd, waste, 1, QUIET_MS) > 0) take(fd, waste, sizeof waste, 0);
}

/* --- 9P --- */

static const unsigned char version[] = "9P2000.L";
#define VERSION_BYTES (sizeof version - 1)
/* size[4] type[1] tag[2] msize[4] version[s] */
#define FRAME_BYTES (4 + 1 + 2 + 4 + 2 + VERSION_BYTES)
#define HEADER_BYTES 7
#define TVERSION 100
#define RVERSION 101

/* Reads so many bytes away; 0 when they do not come in time. */
static int skip(int fd, size_t length, long end) {
  unsigned char waste[4096];
  while (length > 0) {
    size_t part = length < sizeof waste ? length : sizeof waste;
    if (take(fd, waste, part, end - now_ms()) < part) return 0;
    length -= part;
  }
  return 1;
}

/* Whether a server of 9P2000.L answers. */
static int answers(int fd, unsigned msize, long ms) {
  unsigned char frame[FRAME_BYTES] = {FRAME_BYTES, 0, 0, 0, TVERSION, 0xff, 0xff, msize & 0xff, msize >> 8 & 0xff,
                                      msize >> 16 & 0xff, msize >> 24 & 0xff, VERSION_BYTES, 0};
  memcpy(frame + FRAME_BYTES - VERSION_BYTES, version, VERSION_BYTES);
  if (!put(fd, frame, sizeof frame, ms)) return 0;
  /* Answers of an earlier boot may come first. */
  long end = now_ms() + ms;
  for (;;) {
    unsigned char reply[FRAME_BYTES];
    if (take(fd, reply, HEADER_BYTES, end - now_ms()) < HEADER_BYTES) return 0;
    size_t length = reply[0] | reply[1] << 8 | reply[2] << 16 | (size_t)reply[3] << 24;
    int is_ours = reply[4] == RVERSION && reply[5] == 0xff && reply[6] == 0xff && length <= sizeof reply;
    say("a frame of type %d and %zu bytes came", reply[4], length);
    if (length < HEADER_BYTES || length > LONGEST_FRAME) return 0;
    if (!is_ours) {
      if (!skip(fd, length - HEADER_BYTES, end)) return 0;
      continue;
    }
    if (take(fd, reply + HEADER_BYTES, length - HEADER_BYTES, end - now_ms()) < length - HEADER_BYTES) return 0;
    return length == FRAME_BYTES && !memcmp(reply + FRAME_BYTES - VERSION_BYTES, version, VERSION_BYTES);
  }
}

/* --- the token --- */

#define TATTACH 104
#define RATTACH 105

/* This boot's token, from a file that only root can read. */
static void read_token(const char *path, char token[TOKEN_BYTES]) {
  int fd = open(path, O_RDONLY | O_CLOEXEC);
  struct stat file;
  if (fd < 0 || fstat(fd, &file) < 0) fail(USAGE, "opening the token's file %s failed: %s", path, strerror(errno));
  if (file.st_uid != 0 || file.st_mode & 077)
    fail(USAGE, "%s can be read by others than root, who could speak for any user: chown root and chmod 600 it", path);
  ssize_t length = read(fd, token, TOKEN_BYTES - 1);
  close(fd);
  if (length < 0) fail(USAGE, "reading the token's file %s failed: %s", path, strerror(errno));
  token[length] = 0;
  token[strcspn(token, "\r\n")] = 0;
  if (!*token || token[strspn(token, "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_")])
    fail(USAGE, "%s holds no token", path);
}

static unsigned char *put_string(unsigned char *at, const char *first, const char *second) {
  size_t length = strlen(first) + strlen(second);
  *at++ = length & 0xff;
  *at++ = length >> 8 & 0xff;
  memcpy(at, first, strlen(first));
  memcpy(at + strlen(first), second, strlen(second));
  return at + length;
}

/* Attaches once, as nobody; from then on the host believes the connection. */
static void show_token(int fd, const char *path, unsigned msize, long timeout_ms) {
  char token[TOKEN_BYTES];
  read_token(path, token);
  if (!answers(fd, msize, timeout_ms)) fail(MOUNT, "nobody speaks 9P2000.L there");
  /* size[4] type[1] tag[2] fid[4] afid[4] uname[s] aname[s] n_uname[4] */
  unsigned char frame[HEADER_BYTES + 16 + sizeof "token=" + TOKEN_BYTES] = {0, 0, 0, 0, TATTACH};
  memset(frame + HEADER_BYTES + 4, 0xff, 4);
  unsigned char *end = put_string(frame + HEADER_BYTES + 8, "", "");
  end = put_string(end, "token=", token);
  memset(end, 0xff, 4);
  frame[0] = (unsigned char)(end + 4 - frame);
  unsigned char reply[64];
  if (!put(fd, frame, frame[0], ANSWER_MS) || take(fd, reply, HEADER_BYTES, ANSWER_MS) < HEADER_BYTES ||
      reply[0] < HEADER_BYTES || reply[0] > sizeof reply ||
      take(fd, reply + HEADER_BYTES, reply[0] - HEADER_BYTES, ANSWER_MS) < (size_t)(reply[0] - HEADER_BYTES))
    fail(MOUNT, "the host does not answer who shows it the token");
  if (reply[4] != RATTACH) fail(MOUNT, "the host does not know the token in %s; it is good for one boot", path);
}

/* --- the mount --- */

/*
 * Brings a line to a point where both sides agree that a frame begins: an earlier boot may have ended in the middle of one.
 * What makes no sense to the server has it hang up, and the hypervisor connects the line anew.
 */
static int synchronize(int fd, unsigned msize, long timeout_ms) {
  static const unsigned char zeros[LONGEST_FRAME];
  long end = now_ms() + timeout_ms;
  for (;;) {
    if (answers(fd, msize, ANSWER_MS)) return 1;
    if (now_ms() >= end) return 0;
    say("no answer; ending what may be unfinished on the line");
    put(fd, zeros, sizeof zeros, ANSWER_MS);
    usleep(AGAIN_MS * 1000);
    drain(fd);
  }
}

/* --- options --- */

struct wish {
  unsigned long flags;
  unsigned msize;
  long timeout_ms;
  char access[32];
  int has_acl;
  /* The file tree that is asked for; "" where there is one. */
  const char *aname;
  const char *token_file;
};

static const struct {
  const char *name;
  unsigned long set, clear;
} words[] = {
    {"ro", MS_RDONLY, 0},          {"rw", 0, MS_RDONLY},         {"noexec", MS_NOEXEC, 0}, {"exec", 0, MS_NOEXEC},
    {"noatime", MS_NOATIME, 0},    {"relatime", MS_RELATIME, 0}, {"nosuid", 0, 0},         {"nodev", 0, 0},
    {"nodiratime", MS_NODIRATIME, 0}, {"defaults", 0, 0},        {"cache=none", 0, 0},
};

static unsigned long number_of(const char *option, unsigned long least, unsigned long most) {
  const char *digits = strchr(option, '=') + 1;
  char *end;
  unsigned long value = strtoul(digits, &end, 10);
  if (*digits < '0' || *digits > '9' || *end || value < least || value > most)
    fail(USAGE, "\"%s\": give %lu to %lu", option, least, most);
  return value;
}

static int is_word(const char *option, struct wish *wish) {
  for (size_t i = 0; i < sizeof words / sizeof *words; i++)
    if (!strcmp(option, words[i].name)) {
      wish->flags = (wish->flags | words[i].set) & ~words[i].clear;
      return 1;
    }
  /* For mount(8) and systemd alone. */
  return !strncmp(option, "x-", 2) || !strncmp(option, "comment=", 8) || !strcmp(option, "_netdev") ||
         !strcmp(option, "auto") || !strcmp(option, "noauto") || !strcmp(option, "nofail");
}

static void parse(char *options, struct wish *wish) {
  for (char *option = strtok(options, ","); option; option = strtok(NULL, ",")) {
    if (is_word(option, wish)) continue;
    if (!strncmp(option, "msize=", 6)) wish->msize = (unsigned)number_of(option, 4096, LONGEST_FRAME);
    else if (!strncmp(option, "timeout=", 8)) wish->timeout_ms = (long)number_of(option, 1, 3600) * 1000;
    else if (!strcmp(option, "posixacl")) wish->has_acl = 1;
    else if (!strncmp(option, "aname=token=", 12)) fail(USAGE, "everybody could read the token in /proc/mounts; give it by token-file=PATH");
    else if (!strncmp(option, "aname=", 6)) wish->aname = option + 6;
    else if (!strncmp(option, "token-file=", 11)) wish->token_file = option + 11;
    else if (!strcmp(option, "access=user") || !strcmp(option, "access=client") || !strcmp(option, "access=any"))
      snprintf(wish->access, sizeof wish->access, "%s", option);
    else if (!strncmp(option, "cache=", 6)) fail(USAGE, "\"%s\": 9P tells nobody of changes, so only cache=none is true", option);
    else fail(USAGE, "unknown option \"%s\"; known are ro, noexec, access=user, access=client, access=any, posixacl, aname=, token-file=, msize=, timeout=", option);
  }
}

static void mount_line(int fd, const char *source, const char *directory, const struct wish *wish) {
  char options[512];
  int length = snprintf(options, sizeof options, "trans=fd,rfdno=%d,wfdno=%d,version=9p2000.L,msize=%u,cache=none,%s%s%s%s",
                        fd, fd, wish->msize, wish->access, wish->has_acl ? ",posixacl" : "",
                        *wish->aname ? ",aname=" : "", wish->aname);
  if (length < 0 || (size_t)length >= sizeof options) fail(USAGE, "aname is too long");
  say("mounting with %s", *wish->aname ? "an aname of its own" : options);
  if (mount(source, directory, "9p", wish->flags, options) == 0) return;
  switch (errno) {
    case ENODEV:
      fail(SYSTEM, "this kernel has no 9P (modprobe 9p)");
    case EINVAL:
    case EPROTONOSUPPORT:
      fail(SYSTEM, "this kernel has no 9P over descriptors (modprobe 9pnet_fd), or refuses an option");
    case EACCES:
      fail(MOUNT, "the host lets nobody attach from here%s", wish->token_file ? "" : "; with this boot's token it may (token-file=PATH)");
    default:
      fail(MOUNT, "mounting on %s failed: %s", directory, strerror(errno));
  }
}

int main(int argc, char **argv) {
  struct wish wish = {.flags = MS_NOSUID | MS_NODEV, .msize = MSIZE, .timeout_ms = DEFAULT_TIMEOUT_S * 1000,
                      .access = "access=user", .aname = "", .token_file = NULL};
  const char *places[2] = {NULL, NULL};
  int given = 0;
  for (int i = 1; i < argc; i++) {
    if (!strcmp(argv[i], "-o") && i + 1 < argc) parse(argv[++i], &wish);
    else if (!strcmp(argv[i], "-v")) verbose = 1;
    else if (!strcmp(argv[i], "-n") || !strcmp(argv[i], "-s")) continue;
    else if (argv[i][0] == '-' || given == 2) given = 3;
    else places[given++] = argv[i];
  }
  if (given != 2) fail(USAGE, "usage: mount.porthole [-v] hvcN|vsock:PORT|tcp:ADDRESS:PORT DIRECTORY [-o OPTIONS]");
  const char *source = places[0], *directory = places[1];
  if (geteuid() != 0) fail(USAGE, "mounting needs root");
  struct stat there;
  if (stat(directory, &there) < 0 || !S_ISDIR(there.st_mode)) fail(USAGE, "%s is no directory; make it first", directory);
  unsigned cid = VMADDR_CID_HOST, port;
  int length = 0, fd;
  if (sscanf(source, "vsock:%u%n", &port, &length) == 1 && !source[length]) fd = open_vsock(cid, port);
  else if (sscanf(source, "vsock:%u:%u%n", &cid, &port, &length) == 2 && !source[length]) fd = open_vsock(cid, port);
  else if (!strncmp(source, "tcp:", 4)) fd = open_tcp(source + 4);
  else {
    char path[256];
    snprintf(path, sizeof path, "%s%s", source[0] == '/' ? "" : "/dev/", source);
    fd = open_console(path);
    if (!synchronize(fd, wish.msize, wish.timeout_ms))
      fail(MOUNT, "nobody speaks 9P2000.L on %s; is it the console for 9P, and does its host run?", path);
  }
  if (wish.token_file) show_token(fd, wish.token_file, wish.msize, wish.timeout_ms);
  mount_line(fd, source, directory, &wish);
  return 0;
}
