/*
 * readers MODE PATH FLOOR SECONDS [PAUSE_MS]: reads a value that changes, over and over, and checks each copy.
 *
 * MODE: read  open, read 4 KiB at a time to the end, close
 *       stat  open, fstat, read st_size bytes, close
 *       map   open, fstat, mmap(MAP_PRIVATE) st_size bytes, close
 *       held  open, read the whole value again and again for up to 3 s, close
 * FLOOR: file of 8 bytes with the number of the last completed write (see floor.c); "-" for none.
 *
 * Value number N of length L, as pattern.ts writes it: the line "N L\n"; bytes in which position p holds byte p mod 4
 * (least first) of word(N, p div 4); and at the very end N in ten digits between newlines. Every byte depends on N and
 * on its place, so a copy that mixes two values, or is cut, or shifted, differs somewhere.
 *
 * A violation is a copy that is not one whole value, a value numbered below the floor sampled before its open, or a
 * failed call. Prints one line of JSON after SECONDS or SIGTERM; exits with 1 if there was a violation.
 */
#include <errno.h>
#include <fcntl.h>
#include <setjmp.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#define VALUE_MAX (2u << 20)
#define TRAILER 12
#define DETAILS 8

static char buffer[VALUE_MAX];
static volatile sig_atomic_t stop;
static sigjmp_buf bus_error;
static const uint64_t *floor_number;

static uint64_t reads, distinct, lowest, highest, last, moved_while_held, violations, floors, last_floor;
static char details[DETAILS][200];

static void on_term(int signal) {
  (void)signal;
  stop = 1;
}

static void on_bus(int signal) {
  (void)signal;
  siglongjmp(bus_error, 1);
}

static double now(void) {
  struct timespec t;
  clock_gettime(CLOCK_MONOTONIC, &t);
  return (double)t.tv_sec + (double)t.tv_nsec / 1e9;
}

static void pause_ms(long ms) {
  struct timespec t = {ms / 1000, ms % 1000 * 1000000};
  if (ms > 0) nanosleep(&t, NULL);
}

static void violation(const char *kind, uint64_t number, uint64_t floor, uint64_t expected, uint64_t got) {
  if (violations < DETAILS)
    snprintf(details[violations], sizeof details[0],
             "{\"kind\":\"%s\",\"number\":%ju,\"floor\":%ju,\"expected\":%ju,\"got\":%ju}", kind, (uintmax_t)number,
             (uintmax_t)floor, (uintmax_t)expected, (uintmax_t)got);
  violations++;
}

static uint32_t word(uint32_t number, uint32_t index) {
  uint32_t x = number * 0x9e3779b1u + index;
  x = (x ^ x >> 16) * 0x85ebca6bu;
  x = (x ^ x >> 13) * 0xc2b2ae35u;
  return x ^ x >> 16;
}

/* Checks one copy; returns the value's number, or 0 when it is not one whole value. */
static uint64_t check(const char *copy, size_t size, uint64_t floor) {
  uintmax_t number = 0, length = 0;
  int header = 0;
  char start[48] = "", trailer[TRAILER + 1];
  if (size < 64) return violation("short", 0, floor, 64, size), 0;
  memcpy(start, copy, sizeof start - 1);
  if (sscanf(start, "%ju %ju%n", &number, &length, &header) != 2 || start[header] != '\n')
    return violation("header", number, floor, 0, size), 0;
  if (length != size) return violation("length", number, floor, length, size), 0;
  for (size_t at = (size_t)header + 1; at < size - TRAILER; at++) {
    uint8_t expected = (uint8_t)(word((uint32_t)number, (uint32_t)(at >> 2)) >> (at & 3) * 8);
    if ((uint8_t)copy[at] != expected) return violation("body", number, floor, size, at), 0;
  }
  snprintf(trailer, sizeof trailer, "\n%010ju\n", number);
  if (memcmp(copy + size - TRAILER, trailer, TRAILER) != 0) return violation("trailer", number, floor, 0, size), 0;
  if (number < floor) violation("old", number, floor, floor, number);
  reads++;
  if (number != last) distinct++;
  if (lowest == 0 || number < lowest) lowest = number;
  if (number > highest) highest = number;
  return last = number;
}

/* Reads into the buffer from the file's start, in pieces, up to `limit` bytes or the end; -1 after a failed read. */
static ssize_t read_whole(int fd, size_t piece, size_t limit, uint64_t floor) {
  size_t size = 0;
  while (size < limit) {
    size_t want = limit - size < piece ? limit - size : piece;
    ssize_t n = pread(fd, buffer + size, want, (off_t)size);
    if (n < 0) return violation("read", 0, floor, 0, (uint64_t)errno), -1;
    if (n == 0) break;
    size += (size_t)n;
  }
  return (ssize_t)size;
}

static void read_mapped(int fd, size_t size, uint64_t floor) {
  char *map = mmap(NULL, size, PROT_READ, MAP_PRIVATE, fd, 0);
  if (map == MAP_FAILED) return violation("mmap", 0, floor, size, (uint64_t)errno);
  if (sigsetjmp(bus_error, 1) == 0)
    check(map, size, floor);
  else
    violation("bus error", 0, floor, size, 0);
  munmap(map, size);
}

static void read_held(int fd, uint64_t floor, long pause) {
  static const double holds[] = {0.1, 0.5, 1.5, 3};
  static unsigned turn;
  double end = now() + holds[turn++ % 4];
  uint64_t first = 0;
  do {
    ssize_t size = read_whole(fd, 4096, VALUE_MAX, floor);
    uint64_t number = size < 0 ? 0 : check(buffer, (size_t)size, floor);
    if (first == 0) first = number;
    if (number != first) moved_while_held++;
    pause_ms(pause > 20 ? pause : 20);
  } while (now() < end && !stop);
}

static void read_once(const char *mode, const char *path, long pause) {
  uint64_t floor = floor_number ? __atomic_load_n(floor_number, __ATOMIC_SEQ_CST) : 0;
  if (floor != last_floor) floors++;
  last_floor = floor;
  int fd = open(path, O_RDONLY | O_CLOEXEC);
  if (fd < 0) return violation("open", 0, floor, 0, (uint64_t)errno);
  struct stat info;
  ssize_t size;
  switch (*mode) {
  case 'r':
    size = read_whole(fd, 4096, VALUE_MAX, floor);
    if (size >= 0) check(buffer, (size_t)size, floor);
    break;
  case 's':
    if (fstat(fd, &info)) violation("fstat", 0, floor, 0, (uint64_t)errno);
    else if ((size = read_whole(fd, VALUE_MAX, (size_t)info.st_size, floor)) >= 0) check(buffer, (size_t)size, floor);
    break;
  case 'm':
    if (fstat(fd, &info)) violation("fstat", 0, floor, 0, (uint64_t)errno);
    else read_mapped(fd, (size_t)info.st_size, floor);
    break;
  case 'h':
    read_held(fd, floor, pause);
    break;
  }
  if (close(fd)) violation("close", 0, floor, 0, (uint64_t)errno);
}

int main(int argc, char **argv) {
  const char *mode = argc > 1 ? argv[1] : "";
  if (argc < 5 || (strcmp(mode, "read") && strcmp(mode, "stat") && strcmp(mode, "map") && strcmp(mode, "held")))
    return fprintf(stderr, "usage: readers read|stat|map|held PATH FLOOR SECONDS [PAUSE_MS]\n"), 2;
  if (strcmp(argv[3], "-") != 0) {
    int fd = open(argv[3], O_RDONLY | O_CLOEXEC);
    floor_number = fd < 0 ? MAP_FAILED : mmap(NULL, 8, PROT_READ, MAP_SHARED, fd, 0);
    if (floor_number == MAP_FAILED) return perror(argv[3]), 2;
  }
  sigaction(SIGTERM, &(struct sigaction){.sa_handler = on_term}, NULL);
  sigaction(SIGBUS, &(struct sigaction){.sa_handler = on_bus}, NULL);
  long pause = argc > 5 ? atol(argv[5]) : 0;
  double start = now();
  while (!stop && now() - start < atof(argv[4])) {
    read_once(mode, argv[2], pause);
    pause_ms(pause);
  }
  printf("{\"mode\":\"%s\",\"reads\":%ju,\"distinct\":%ju,\"lowest\":%ju,\"highest\":%ju,\"floors\":%ju,"
         "\"movedWhileHeld\":%ju,\"violations\":%ju,\"details\":[",
         mode, (uintmax_t)reads, (uintmax_t)distinct, (uintmax_t)lowest, (uintmax_t)highest, (uintmax_t)floors,
         (uintmax_t)moved_while_held, (uintmax_t)violations);
  for (uint64_t i = 0; i < violations && i < DETAILS; i++) printf("%s%s", i ? "," : "", details[i]);
  puts("]}");
  return violations > 0;
}
