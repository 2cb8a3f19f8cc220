/*
 * Connects by itself and attaches as root, as a program of a guest that wants more than is its own would.
 * usage: attach-as-root UID console:PATH|tcp:ADDRESS:PORT|vsock:PORT[:SOURCE] NAME...
 * It becomes that uid first. Prints `read TEXT` with what the file of these names holds, or `CALL ERRNO-NAME` of the call or
 * message that was refused.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <grp.h>
#include <linux/vm_sockets.h>
#include <poll.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <termios.h>
#include <unistd.h>

static unsigned char out[4096], in[65536];
static size_t used;
static int fd;

static void refused(const char *what, int code) {
  printf("%s %s\n", what, strerrorname_np(code));
  exit(0);
}

static void put(const void *data, size_t length) {
  memcpy(out + used, data, length);
  used += length;
}

static void number(uint64_t value, int bytes) {
  for (int i = 0; i < bytes; i++) out[used++] = (unsigned char)(value >> 8 * i);
}

static void string(const char *text) {
  number(strlen(text), 2);
  put(text, strlen(text));
}

static void begin(int type, int tag) {
  used = 4;
  number((unsigned)type, 1);
  number((unsigned)tag, 2);
}

static void take(size_t from, size_t to) {
  while (from < to) {
    ssize_t got = read(fd, in + from, to - from);
    if (got < 0 && errno == EAGAIN) {
      struct pollfd one = {.fd = fd, .events = POLLIN};
      poll(&one, 1, 10000);
      continue;
    }
    if (got <= 0) refused("hangup", got < 0 ? errno : EPIPE);
    from += (size_t)got;
  }
}

/* Sends what was begun, and leaves the answer's body in `in`; an Rlerror ends the program. */
static size_t ask(const char *name) {
  size_t length = used;
  used = 0;
  number(length, 4);
  if (write(fd, out, length) != (ssize_t)length) refused("write", errno);
  take(0, 7);
  size_t size = in[0] | in[1] << 8 | in[2] << 16;
  take(7, size);
  if (in[4] == 7) refused(name, in[7] | in[8] << 8);
  return size;
}

static void open_line(char *where) {
  char *kind = strtok(where, ":"), *first = strtok(NULL, ":"), *second = strtok(NULL, ":");
  if (!strcmp(kind, "console")) {
    fd = open(first, O_RDWR | O_NOCTTY | O_NONBLOCK);
    if (fd < 0) refused("open", errno);
    struct termios raw;
    tcgetattr(fd, &raw);
    cfmakeraw(&raw);
    tcsetattr(fd, TCSAFLUSH, &raw);
  } else if (!strcmp(kind, "tcp")) {
    struct sockaddr_in to = {.sin_family = AF_INET, .sin_port = htons((uint16_t)atoi(second))}, own = {.sin_family = AF_INET};
    inet_pton(AF_INET, first, &to.sin_addr);
    fd = socket(AF_INET, SOCK_STREAM, 0);
    own.sin_port = htons(1000);
    if (getuid() == 0 && bind(fd, (struct sockaddr *)&own, sizeof own) < 0) refused("bind", errno);
    if (connect(fd, (struct sockaddr *)&to, sizeof to) < 0) refused("connect", errno);
  } else {
    struct sockaddr_vm own = {.svm_family = AF_VSOCK, .svm_cid = VMADDR_CID_ANY, .svm_port = VMADDR_PORT_ANY};
    struct sockaddr_vm to = {.svm_family = AF_VSOCK, .svm_cid = VMADDR_CID_HOST, .svm_port = (unsigned)atoi(first)};
    fd = socket(AF_VSOCK, SOCK_STREAM, 0);
    if (second) own.svm_port = (unsigned)atoi(second);
    if (second && bind(fd, (struct sockaddr *)&own, sizeof own) < 0) refused("bind", errno);
    if (connect(fd, (struct sockaddr *)&to, sizeof to) < 0) refused("connect", errno);
  }
}

int main(int argc, char **argv) {
  if (argc < 4) return 2;
  int uid = atoi(argv[1]);
  if (uid != 0 && (setgroups(0, NULL) < 0 || setgid((gid_t)uid) < 0 || setuid((uid_t)uid) < 0)) return 2;
  open_line(argv[2]);
  begin(100, 0xffff);
  number(8192, 4);
  string("9P2000.L");
  ask("version");
  begin(104, 1);
  number(1, 4);
  number(0xffffffff, 4);
  string("root");
  string("/");
  number(0, 4);
  ask("attach");
  begin(110, 1);
  number(1, 4);
  number(2, 4);
  number((unsigned)argc - 3, 2);
  for (int i = 3; i < argc; i++) string(argv[i]);
  ask("walk");
  begin(12, 1);
  number(2, 4);
  number(0, 4);
  ask("open");
  begin(116, 1);
  number(2, 4);
  number(0, 8);
  number(4096, 4);
  size_t size = ask("read");
  printf("read %.*s\n", (int)(size - 11), in + 11);
  return 0;
}
