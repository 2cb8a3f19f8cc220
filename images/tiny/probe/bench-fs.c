/*
 * bench-fs stat|open|pread N PATH...: times N operations, taking the paths in turn, after N/10 to warm up.
 *
 * stat: stat(2). open: open, read to the end in 64 KiB pieces, close. pread: 4 KiB at offset 0 of a file held open.
 * Prints one line of JSON, in nanoseconds per operation: {"op","n","p50","p99","mean"}.
 */
#include <fcntl.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

static char buffer[65536];

static uint64_t now(void) {
  struct timespec t;
  clock_gettime(CLOCK_MONOTONIC, &t);
  return (uint64_t)t.tv_sec * 1000000000u + (uint64_t)t.tv_nsec;
}

static int by_size(const void *a, const void *b) {
  uint64_t x = *(const uint64_t *)a, y = *(const uint64_t *)b;
  return (x > y) - (x < y);
}

static int stat_once(const char *path, int fd) {
  struct stat info;
  (void)fd;
  return stat(path, &info);
}

static int open_once(const char *path, int fd) {
  ssize_t n;
  fd = open(path, O_RDONLY | O_CLOEXEC);
  if (fd < 0) return -1;
  while ((n = read(fd, buffer, sizeof buffer)) > 0) continue;
  return close(fd) || n < 0 ? -1 : 0;
}

static int pread_once(const char *path, int fd) {
  (void)path;
  return pread(fd, buffer, 4096, 0) < 0 ? -1 : 0;
}

int main(int argc, char **argv) {
  const char *op = argc > 1 ? argv[1] : "";
  int (*once)(const char *, int) = !strcmp(op, "stat")    ? stat_once
                                   : !strcmp(op, "open")  ? open_once
                                   : !strcmp(op, "pread") ? pread_once
                                                          : NULL;
  long n = argc > 3 ? atol(argv[2]) : 0;
  if (!once || n < 1) return fprintf(stderr, "usage: bench-fs stat|open|pread N PATH...\n"), 2;
  int paths = argc - 3;
  int *fds = calloc((size_t)paths, sizeof *fds);
  uint64_t *times = calloc((size_t)n, sizeof *times), sum = 0;
  if (!fds || !times) return perror("memory"), 1;
  for (int i = 0; i < paths && once == pread_once; i++)
    if ((fds[i] = open(argv[3 + i], O_RDONLY | O_CLOEXEC)) < 0) return perror(argv[3 + i]), 1;
  for (long i = -n / 10; i < n; i++) {
    int which = (int)((i + n) % paths);
    uint64_t start = now();
    if (once(argv[3 + which], fds[which])) return perror(argv[3 + which]), 1;
    if (i >= 0) sum += times[i] = now() - start;
  }
  qsort(times, (size_t)n, sizeof *times, by_size);
  printf("{\"op\":\"%s\",\"n\":%ld,\"p50\":%ju,\"p99\":%ju,\"mean\":%ju}\n", op, n, (uintmax_t)times[n / 2],
         (uintmax_t)times[n * 99 / 100], (uintmax_t)(sum / (uint64_t)n));
}
