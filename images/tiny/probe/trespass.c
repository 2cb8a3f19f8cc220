/*
 * trespass DIR WORD MOST: tries, as root, to see more of a mount than its names show, and looks for WORD in all that answers.
 *
 * Handles: opens by handle (open_by_handle_at(2)) every nodeid from 1 to MOST and those near the nodeids that DIR's files
 * have, in several generations; reads what opens, its entries and its attributes. Ioctls: every number of the types that
 * file systems have, in two sizes, on DIR and a file in it, and FUSE_DEV_IOC_CLONE.
 * Prints one line of JSON: {"handles": that DIR's files have, "tried", "opened", "ioctls": tried, "answered", "found": times}.
 */
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <ftw.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/stat.h>
#include <sys/xattr.h>
#include <unistd.h>

#define NEAR 16
#define KNOWN_MAX 512
/* include/linux/exportfs.h: what FUSE's handles are, as nodeid (high, low) and generation. */
#define FILEID_INO64_GEN 0x81

static const char *word;
static uint64_t known[KNOWN_MAX];
static uint32_t generations[KNOWN_MAX];
static unsigned handles, tried, opened, ioctls, answered, found;
static char file[4096];
static char buffer[1 << 20];

static void look(const void *bytes, size_t size) {
  if (memmem(bytes, size, word, strlen(word))) found++;
}

static int collect(const char *path, const struct stat *info, int kind, struct FTW *place) {
  union {
    struct file_handle handle;
    char room[sizeof(struct file_handle) + MAX_HANDLE_SZ];
  } at = {.handle.handle_bytes = MAX_HANDLE_SZ};
  int mount;
  (void)kind;
  (void)place;
  if (handles < KNOWN_MAX && name_to_handle_at(AT_FDCWD, path, &at.handle, &mount, 0) == 0 &&
      at.handle.handle_type == FILEID_INO64_GEN) {
    uint32_t id[3];
    memcpy(id, at.handle.f_handle, sizeof id);
    known[handles] = (uint64_t)id[0] << 32 | id[1];
    generations[handles++] = id[2];
    /* Kept: Linux forgets at once what nobody uses and may not be cached, and opens by handle what it has in memory. */
    if (open(path, O_PATH | O_NOFOLLOW | O_CLOEXEC) < 0) perror(path);
  }
  if (S_ISREG(info->st_mode) && !file[0] && !strstr(path, "/.changes")) snprintf(file, sizeof file, "%s", path);
  return 0;
}

/* Looks into whatever is open, and closes it. */
static void search(int fd) {
  struct stat info;
  static const char *const names[] = {"system.porthole.why", "system.porthole.revision", "system.porthole.age"};
  ssize_t n;
  for (unsigned i = 0; i < sizeof names / sizeof *names; i++)
    if ((n = fgetxattr(fd, names[i], buffer, sizeof buffer)) > 0) look(buffer, n);
  if ((n = flistxattr(fd, buffer, sizeof buffer)) > 0) look(buffer, n);
  if (fstat(fd, &info) == 0 && S_ISDIR(info.st_mode)) {
    DIR *dir = fdopendir(fd);
    struct dirent *entry;
    while (dir && (entry = readdir(dir))) look(entry->d_name, strlen(entry->d_name));
    if (dir) {
      closedir(dir);
      return;
    }
  } else if ((n = pread(fd, buffer, sizeof buffer, 0)) > 0) {
    look(buffer, n);
  }
  close(fd);
}

static void open_handle(int mount, uint64_t nodeid, uint32_t generation) {
  union {
    struct file_handle handle;
    char room[sizeof(struct file_handle) + MAX_HANDLE_SZ];
  } at = {.handle = {.handle_bytes = 12, .handle_type = FILEID_INO64_GEN}};
  uint32_t id[3] = {nodeid >> 32, (uint32_t)nodeid, generation};
  memcpy(at.handle.f_handle, id, sizeof id);
  tried++;
  /* A reader of /.changes would wait. */
  int fd = open_by_handle_at(mount, &at.handle, O_RDONLY | O_NONBLOCK | O_CLOEXEC);
  if (fd < 0) return;
  opened++;
  search(fd);
}

static void try_ioctls(int fd) {
  static const unsigned char types[] = {'f', 'v', 'X', 0xe5};
  for (unsigned t = 0; t < sizeof types; t++)
    for (unsigned number = 0; number < 256; number++) {
      const unsigned long requests[] = {_IO(types[t], number),
                                        _IOC(_IOC_READ | _IOC_WRITE, types[t], number, 4096)};
      for (unsigned i = 0; i < 2; i++) {
        memset(buffer, 0, 8192);
        ioctls++;
        if (ioctl(fd, requests[i], buffer) < 0) continue;
        answered++;
        look(buffer, 8192);
      }
    }
}

int main(int argc, char **argv) {
  if (argc != 4) return fprintf(stderr, "usage: trespass DIR WORD MOST\n"), 2;
  word = argv[2];
  uint64_t most = strtoull(argv[3], NULL, 10);
  int mount = open(argv[1], O_RDONLY | O_DIRECTORY | O_CLOEXEC);
  if (mount < 0) return perror(argv[1]), 1;
  if (nftw(argv[1], collect, 32, FTW_PHYS)) return perror("nftw"), 1;
  for (uint64_t nodeid = 1; nodeid <= most; nodeid++)
    for (uint32_t generation = 0; generation < 2; generation++) open_handle(mount, nodeid, generation);
  for (unsigned i = 0; i < handles; i++)
    for (int64_t offset = -NEAR; offset <= NEAR; offset++) {
      open_handle(mount, known[i] + offset, generations[i]);
      open_handle(mount, known[i] + offset, generations[i] + 1);
    }
  try_ioctls(mount);
  int fd = open(file, O_RDONLY | O_CLOEXEC);
  if (fd < 0) return perror(file), 1;
  try_ioctls(fd);
  int device = open("/dev/fuse", O_RDWR | O_CLOEXEC);
  uint32_t session = mount;
  ioctls++;
  if (device >= 0 && ioctl(device, _IOR(229, 0, uint32_t), &session) == 0) answered++;
  printf("{\"handles\":%u,\"tried\":%u,\"opened\":%u,\"ioctls\":%u,\"answered\":%u,\"found\":%u}\n", handles, tried,
         opened, ioctls, answered, found);
}
