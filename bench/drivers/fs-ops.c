/*
 * Times one operation on one file, n times, each by itself, after a tenth as many that don't count.
 *
 *   stat    stat(2) by path
 *   open    open(2), one read(2) of up to 64 KiB, close(2)
 *   pread   one pread(2) of up to 4 KiB at offset 0 of a file that is open already
 *
 * usage: fs-ops OPERATION PATH N        prints: n p50 p99 mean (nanoseconds)
 */
#define _GNU_SOURCE
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

static void check(int ok, const char *operation, const char *path) {
  if (ok) return;
  fprintf(stderr, "fs-ops: %s ", operation);
  perror(path);
  exit(1);
}

static int ascending(const void *a, const void *b) {
  uint32_t x = *(const uint32_t *)a, y = *(const uint32_t *)b;
  return x < y ? -1 : x > y;
}

int main(int argc, char **argv) {
  if (argc != 4) {
    fprintf(stderr, "usage: fs-ops stat|open|pread PATH N\n");
    return 2;
  }
  const char *operation = argv[1], *path = argv[2];
  size_t n = strtoul(argv[3], NULL, 10), warm = n / 10;
  uint32_t *took = calloc(n, sizeof *took);
  int held = open(path, O_RDONLY | O_CLOEXEC);
  check(held >= 0 && n > 0 && took, "open", path);
  char kind = !strcmp(operation, "stat") ? 's' : !strcmp(operation, "open") ? 'o' : !strcmp(operation, "pread") ? 'p' : 0;
  if (!kind) {
    fprintf(stderr, "fs-ops: no operation is named \"%s\"; use stat, open or pread\n", operation);
    return 2;
  }
  uint64_t sum = 0;
  for (size_t i = 0; i < warm + n; i++) {
    uint64_t start = now();
    if (kind == 's') {
      struct stat st;
      check(stat(path, &st) == 0, "stat", path);
    } else if (kind == 'o') {
      int fd = open(path, O_RDONLY | O_CLOEXEC);
      check(fd >= 0, "open", path);
      check(read(fd, buffer, sizeof buffer) > 0, "read", path);
      check(close(fd) == 0, "close", path);
    } else
      check(pread(held, buffer, 4096, 0) > 0, "pread", path);
    uint64_t ns = now() - start;
    if (i < warm) continue;
    took[i - warm] = ns > UINT32_MAX ? UINT32_MAX : (uint32_t)ns;
    sum += ns;
  }
  qsort(took, n, sizeof *took, ascending);
  printf("%zu %u %u %.0f\n", n, took[n / 2], took[n * 99 / 100], (double)sum / (double)n);
  return 0;
}
