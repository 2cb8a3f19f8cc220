/*
 * floor PORT FILE: keeps the last number that the host sent over a virtio-serial port in FILE, for readers to map.
 *
 * The host sends 8-byte little-endian numbers. FILE is 8 bytes long and always holds the last one, in the machine's
 * byte order; it is written by one store, so no reader sees half a number. Prints "ready" once the port is open.
 */
#include <stdint.h>
#include <sys/mman.h>
#include <unistd.h>

#include "../port.h"

int main(int argc, char **argv) {
  if (argc != 3) return fprintf(stderr, "usage: floor PORT FILE\n"), 2;
  int port = open_port(argv[1]);
  if (port < 0) return perror(argv[1]), 1;
  int file = open(argv[2], O_RDWR | O_CREAT | O_CLOEXEC, 0644);
  if (file < 0 || ftruncate(file, 8)) return perror(argv[2]), 1;
  uint64_t *floor = mmap(NULL, 8, PROT_READ | PROT_WRITE, MAP_SHARED, file, 0);
  if (floor == MAP_FAILED) return perror("mmap"), 1;
  puts("ready");
  fflush(stdout);

  uint8_t buffer[8 * 512];
  size_t size = 0;
  for (;;) {
    ssize_t n = read(port, buffer + size, sizeof buffer - size);
    if (n < 0 && errno != EINTR) return perror("reading the port"), 1;
    if (n == 0) nanosleep(&(struct timespec){.tv_nsec = 1000000}, NULL); /* the host is not connected */
    if (n <= 0) continue;
    size += (size_t)n;
    size_t whole = size & ~(size_t)7;
    if (whole == 0) continue;
    uint64_t number;
    memcpy(&number, buffer + whole - 8, 8);
    __atomic_store_n(floor, number, __ATOMIC_SEQ_CST);
    memmove(buffer, buffer + whole, size - whole);
    size -= whole;
  }
}
