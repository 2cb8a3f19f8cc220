/*
 * vsock connect PORT [FROM]   standard input to the host's PORT and what comes back to standard output; FROM is bound first
 * vsock listen PORT COMMAND   each connection is COMMAND's standard input and output; prints "ready" first
 * vsock echo PORT             one process gives every connection back what it sends; prints "ready" first
 * vsock many PORT COUNT       COUNT connections to the host that are open at once; each must echo its number
 *
 * What fails is named by its errno on standard error, and the exit code is 1.
 */
#include <errno.h>
#include <linux/vm_sockets.h>
#include <poll.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

static int failed(const char *what) {
  fprintf(stderr, "%s: %s\n", what, strerrorname_np(errno));
  return 1;
}

static struct sockaddr_vm address(unsigned cid, const char *port) {
  return (struct sockaddr_vm){.svm_family = AF_VSOCK, .svm_cid = cid, .svm_port = (unsigned)strtoul(port, NULL, 10)};
}

static int bound(const char *port) {
  int fd = socket(AF_VSOCK, SOCK_STREAM, 0);
  if (fd < 0 || port == NULL) return fd;
  struct sockaddr_vm from = address(VMADDR_CID_ANY, port);
  if (bind(fd, (struct sockaddr *)&from, sizeof from) == 0) return fd;
  close(fd);
  return -1;
}

static int to_host(int fd, const char *port) {
  struct sockaddr_vm to = address(VMADDR_CID_HOST, port);
  return connect(fd, (struct sockaddr *)&to, sizeof to);
}

static int write_all(int fd, const char *bytes, size_t count) {
  while (count > 0) {
    ssize_t n = write(fd, bytes, count);
    if (n < 0) return -1;
    bytes += n;
    count -= (size_t)n;
  }
  return 0;
}

static int relay(int fd) {
  static char bytes[65536];
  struct pollfd polls[2] = {{.fd = 0, .events = POLLIN}, {.fd = fd, .events = POLLIN}};
  for (;;) {
    if (poll(polls, 2, -1) < 0) return failed("poll");
    if (polls[0].revents != 0) {
      ssize_t n = read(0, bytes, sizeof bytes);
      if (n < 0) return failed("read");
      if (n == 0) {
        polls[0].fd = -1;
        if (shutdown(fd, SHUT_WR) != 0) return failed("shutdown");
      } else if (write_all(fd, bytes, (size_t)n) != 0) return failed("send");
    }
    if (polls[1].revents != 0) {
      ssize_t n = read(fd, bytes, sizeof bytes);
      if (n < 0) return failed("receive");
      if (n == 0) return polls[0].fd < 0 ? 0 : (fputs("the host ended it\n", stderr), 1);
      if (write_all(1, bytes, (size_t)n) != 0) return failed("write");
    }
  }
}

static int many(const char *port, int count) {
  int *fds = calloc((size_t)count, sizeof *fds);
  for (int i = 0; i < count; i++) {
    uint64_t number = (uint64_t)i;
    fds[i] = bound(NULL);
    if (fds[i] < 0 || to_host(fds[i], port) != 0) return failed("connect");
    if (write(fds[i], &number, sizeof number) != sizeof number) return failed("send");
  }
  for (int i = 0; i < count; i++) {
    uint64_t number;
    if (recv(fds[i], &number, sizeof number, MSG_WAITALL) != sizeof number) return failed("receive");
    if (number != (uint64_t)i) return fprintf(stderr, "%d got %llu\n", i, (unsigned long long)number), 1;
  }
  printf("%d\n", count);
  return 0;
}

static int listener_at(const char *port) {
  int listener = bound(port);
  if (listener < 0 || listen(listener, 1024) != 0) return -1;
  puts("ready");
  fflush(stdout);
  return listener;
}

static int echo(const char *port) {
  static struct pollfd polls[1024];
  static char bytes[65536];
  int listener = listener_at(port);
  if (listener < 0) return failed("listen");
  polls[0] = (struct pollfd){.fd = listener, .events = POLLIN};
  for (nfds_t count = 1;;) {
    if (poll(polls, count, -1) < 0) return failed("poll");
    for (nfds_t i = count - 1; i > 0; i--) {
      if (polls[i].revents == 0) continue;
      ssize_t n = read(polls[i].fd, bytes, sizeof bytes);
      if (n > 0 && write_all(polls[i].fd, bytes, (size_t)n) == 0) continue;
      close(polls[i].fd);
      polls[i] = polls[--count];
    }
    if (polls[0].revents == 0 || count == 1024) continue;
    int fd = accept(listener, NULL, NULL);
    if (fd < 0) return failed("accept");
    polls[count++] = (struct pollfd){.fd = fd, .events = POLLIN};
  }
}

static int listening(const char *port, char **command) {
  int listener = listener_at(port);
  if (listener < 0) return failed("listen");
  signal(SIGCHLD, SIG_IGN);
  for (;;) {
    int fd = accept4(listener, NULL, NULL, SOCK_CLOEXEC);
    if (fd < 0) return failed("accept");
    if (fork() == 0) {
      dup2(fd, 0);
      dup2(fd, 1);
      signal(SIGCHLD, SIG_DFL);
      execvp(command[0], command);
      _exit(127);
    }
    close(fd);
  }
}

int main(int argc, char **argv) {
  signal(SIGPIPE, SIG_IGN);
  if (argc >= 4 && strcmp(argv[1], "listen") == 0) return listening(argv[2], argv + 3);
  if (argc == 3 && strcmp(argv[1], "echo") == 0) return echo(argv[2]);
  if (argc == 4 && strcmp(argv[1], "many") == 0) return many(argv[2], atoi(argv[3]));
  if (argc >= 3 && strcmp(argv[1], "connect") == 0) {
    int fd = bound(argc > 3 ? argv[3] : NULL);
    if (fd < 0) return failed("bind");
    if (to_host(fd, argv[2]) != 0) return failed("connect");
    return relay(fd);
  }
  fprintf(stderr, "usage: see the head of vsock.c\n");
  return 2;
}
