/*
 * poll-wait PATH [TIMEOUT_MS]: reads a file to its end, prints "waiting", polls it for POLLIN and POLLPRI, and says
 * when the poll woke: one line of JSON {"woke": 0 when the time was over, "in", "pri", "err", "ms"}.
 */
#include <fcntl.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <time.h>
#include <unistd.h>

int main(int argc, char **argv) {
  static char buffer[65536];
  if (argc < 2) return fprintf(stderr, "usage: poll-wait PATH [TIMEOUT_MS]\n"), 2;
  struct pollfd watch = {.fd = open(argv[1], O_RDONLY | O_CLOEXEC), .events = POLLIN | POLLPRI};
  if (watch.fd < 0) return perror(argv[1]), 1;
  ssize_t n;
  while ((n = read(watch.fd, buffer, sizeof buffer)) > 0) continue;
  if (n < 0) return perror("read"), 1;
  puts("waiting");
  fflush(stdout);
  struct timespec before, after;
  clock_gettime(CLOCK_MONOTONIC, &before);
  int woke = poll(&watch, 1, argc > 2 ? atoi(argv[2]) : -1);
  if (woke < 0) return perror("poll"), 1;
  clock_gettime(CLOCK_MONOTONIC, &after);
  long ms = (after.tv_sec - before.tv_sec) * 1000 + (after.tv_nsec - before.tv_nsec) / 1000000;
  printf("{\"woke\":%d,\"in\":%s,\"pri\":%s,\"err\":%s,\"ms\":%ld}\n", woke, watch.revents & POLLIN ? "true" : "false",
         watch.revents & POLLPRI ? "true" : "false", watch.revents & POLLERR ? "true" : "false", ms);
}
