/*
 * Makes system calls for the conformance suite: a line of words in, a line of words out, one call at a time.
 * usage: posix-agent PREFIX UID GID [GROUP,GROUP,...]
 * It becomes that identity before it reads. Paths are relative to PREFIX; bytes are hexadecimal, `-` for none; numbers are
 * decimal. Answers: `ok WORD...` or `err ERRNO`. SIGUSR1 interrupts the call at hand. The first line out is `ok PID`.
 */
#define _GNU_SOURCE
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <grp.h>
#include <inttypes.h>
#include <poll.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/statfs.h>
#include <sys/syscall.h>
#include <sys/types.h>
#include <sys/xattr.h>
#include <unistd.h>

#define MAX_WORDS 8
#define ROOM (2 * 1024 * 1024)

static const char *prefix;
static char *words[MAX_WORDS];
static unsigned char room[ROOM];

static void on_signal(int number) { (void)number; }

static void die(const char *what) {
  perror(what);
  exit(1);
}

static long long number(int index) { return words[index] ? strtoll(words[index], NULL, 10) : 0; }

static int digit(char c) { return c <= '9' ? c - '0' : c - 'a' + 10; }

/* Decodes a word of hexadecimal digits; the result ends with a NUL that is not counted. */
static unsigned char *bytes(int index, size_t *length) {
  const char *word = words[index] && words[index][0] != '-' ? words[index] : "";
  size_t count = strlen(word) / 2;
  unsigned char *result = malloc(count + 1);
  if (!result) die("malloc");
  for (size_t i = 0; i < count; i++) result[i] = (unsigned char)(digit(word[2 * i]) << 4 | digit(word[2 * i + 1]));
  result[count] = 0;
  if (length) *length = count;
  return result;
}

static char *path(int index) {
  unsigned char *relative = bytes(index, NULL);
  size_t room_needed = strlen(prefix) + strlen((char *)relative) + 1;
  char *result = malloc(room_needed);
  if (!result) die("malloc");
  snprintf(result, room_needed, "%s%s", prefix, relative);
  free(relative);
  return result;
}

static void put_bytes(const unsigned char *data, size_t length) {
  static const char digits[] = "0123456789abcdef";
  if (length == 0) putchar('-');
  for (size_t i = 0; i < length; i++) {
    putchar(digits[data[i] >> 4]);
    putchar(digits[data[i] & 15]);
  }
}

static void answer(long long result) {
  if (result < 0) printf("err %d\n", errno);
  else printf("ok %lld\n", result);
}

static void answer_bytes(ssize_t length) {
  if (length < 0) {
    answer(-1);
    return;
  }
  printf("ok ");
  put_bytes(room, (size_t)length);
  putchar('\n');
}

static void answer_stat(int result, const struct stat *s) {
  if (result < 0) {
    answer(-1);
    return;
  }
  printf("ok %u %u %u %lld %llu %llu %lld %ld %lld %ld %lld %ld\n", s->st_mode, s->st_uid, s->st_gid,
         (long long)s->st_size, (unsigned long long)s->st_ino, (unsigned long long)s->st_nlink,
         (long long)s->st_atim.tv_sec, s->st_atim.tv_nsec, (long long)s->st_mtim.tv_sec, s->st_mtim.tv_nsec,
         (long long)s->st_ctim.tv_sec, s->st_ctim.tv_nsec);
}

static void answer_directory(const char *name) {
  DIR *directory = opendir(name);
  if (!directory) {
    answer(-1);
    return;
  }
  printf("ok");
  errno = 0;
  for (struct dirent *entry; (entry = readdir(directory));) {
    putchar(' ');
    put_bytes((unsigned char *)entry->d_name, strlen(entry->d_name));
    printf(":%llu:%d", (unsigned long long)entry->d_ino, entry->d_type);
  }
  /* A word that no entry looks like: the listing broke off. */
  if (errno) printf(" err:%d", errno);
  putchar('\n');
  closedir(directory);
}

static struct timespec time_of(int index) {
  struct timespec result = {0, 0};
  if (!strcmp(words[index], "now")) result.tv_nsec = UTIME_NOW;
  else if (!strcmp(words[index], "omit")) result.tv_nsec = UTIME_OMIT;
  else {
    char *end;
    result.tv_sec = strtoll(words[index], &end, 10);
    result.tv_nsec = *end == '.' ? strtol(end + 1, NULL, 10) : 0;
  }
  return result;
}

static void close_all(void) {
  DIR *directory = opendir("/proc/self/fd");
  if (!directory) {
    for (int fd = 3; fd < 1024; fd++) close(fd);
    return;
  }
  int own = dirfd(directory);
  int open_fds[1024], count = 0;
  for (struct dirent *entry; (entry = readdir(directory)) && count < 1024;) {
    int fd = atoi(entry->d_name);
    if (fd >= 3 && fd != own) open_fds[count++] = fd;
  }
  closedir(directory);
  while (count > 0) close(open_fds[--count]);
}

static void perform(void) {
  const char *call = words[0];
  struct stat s;
  size_t length;
  if (!strcmp(call, "reset")) {
    close_all();
    umask(022);
    answer(0);
  } else if (!strcmp(call, "umask")) {
    umask((mode_t)number(1));
    answer(0);
  } else if (!strcmp(call, "close")) answer(close((int)number(1)));
  else if (!strcmp(call, "read")) answer_bytes(read((int)number(1), room, (size_t)(number(2) > ROOM ? ROOM : number(2))));
  else if (!strcmp(call, "pread"))
    answer_bytes(pread((int)number(1), room, (size_t)(number(2) > ROOM ? ROOM : number(2)), number(3)));
  else if (!strcmp(call, "write") || !strcmp(call, "pwrite")) {
    unsigned char *data = bytes(2, &length);
    answer(call[0] == 'w' ? write((int)number(1), data, length) : pwrite((int)number(1), data, length, number(3)));
    free(data);
  } else if (!strcmp(call, "fsync")) answer(fsync((int)number(1)));
  else if (!strcmp(call, "fstat")) answer_stat(fstat((int)number(1), &s), &s);
  else if (!strcmp(call, "ftruncate")) answer(ftruncate((int)number(1), number(2)));
  else if (!strcmp(call, "fchmod")) answer(fchmod((int)number(1), (mode_t)number(2)));
  else if (!strcmp(call, "poll")) {
    struct pollfd one = {.fd = (int)number(1), .events = POLLIN};
    answer(poll(&one, 1, 0) < 0 ? -1 : (one.revents & POLLIN) != 0);
  } else {
    char *name = path(1);
    if (!strcmp(call, "open")) answer(open(name, (int)number(2) | O_CLOEXEC, (mode_t)number(3)));
    else if (!strcmp(call, "stat")) answer_stat(stat(name, &s), &s);
    else if (!strcmp(call, "lstat")) answer_stat(lstat(name, &s), &s);
    else if (!strcmp(call, "access")) answer(access(name, (int)number(2)));
    else if (!strcmp(call, "readdir")) answer_directory(name);
    else if (!strcmp(call, "mkdir")) answer(mkdir(name, (mode_t)number(2)));
    else if (!strcmp(call, "rmdir")) answer(rmdir(name));
    else if (!strcmp(call, "unlink")) answer(unlink(name));
    else if (!strcmp(call, "mknod")) answer(mknod(name, S_IFIFO | (mode_t)number(2), 0));
    else if (!strcmp(call, "chmod")) answer(chmod(name, (mode_t)number(2)));
    else if (!strcmp(call, "lchown")) answer(lchown(name, (uid_t)number(2), (gid_t)number(3)));
    else if (!strcmp(call, "truncate")) answer(truncate(name, number(2)));
    else if (!strcmp(call, "readlink")) answer_bytes(readlink(name, (char *)room, ROOM));
    else if (!strcmp(call, "utimens")) {
      struct timespec times[2] = {time_of(2), time_of(3)};
      answer(utimensat(AT_FDCWD, name, times, 0));
    } else if (!strcmp(call, "rename") || !strcmp(call, "link")) {
      char *other = path(2);
      answer(call[0] == 'l' ? link(name, other)
                            : syscall(SYS_renameat2, AT_FDCWD, name, AT_FDCWD, other, (unsigned)number(3)));
      free(other);
    } else if (!strcmp(call, "symlink")) {
      unsigned char *target = bytes(2, NULL);
      answer(symlink((char *)target, name));
      free(target);
    } else if (!strcmp(call, "getxattr")) answer_bytes(getxattr(name, words[2], room, ROOM > 65536 ? 65536 : ROOM));
    else if (!strcmp(call, "listxattr")) answer_bytes(listxattr(name, (char *)room, 65536));
    else if (!strcmp(call, "removexattr")) answer(removexattr(name, words[2]));
    else if (!strcmp(call, "setxattr")) {
      unsigned char *value = bytes(3, &length);
      answer(setxattr(name, words[2], value, length, (int)number(4)));
      free(value);
    } else if (!strcmp(call, "statfs")) {
      struct statfs f;
      if (statfs(name, &f) < 0) answer(-1);
      else
        printf("ok %lld %llu %llu %llu %llu %lld\n", (long long)f.f_frsize, (unsigned long long)f.f_blocks,
               (unsigned long long)f.f_bfree, (unsigned long long)f.f_files, (unsigned long long)f.f_ffree,
               (long long)f.f_namelen);
    } else printf("err %d\n", ENOSYS);
    free(name);
  }
}

static void become(uid_t uid, gid_t gid, char *groups) {
  gid_t list[64];
  size_t count = 0;
  for (char *word = groups ? strtok(groups, ",") : NULL; word && count < 64; word = strtok(NULL, ","))
    list[count++] = (gid_t)strtoul(word, NULL, 10);
  if (setgroups(count, list) < 0) die("setgroups");
  if (setresgid(gid, gid, gid) < 0) die("setresgid");
  if (setresuid(uid, uid, uid) < 0) die("setresuid");
}

int main(int argc, char **argv) {
  if (argc < 4) {
    fprintf(stderr, "usage: posix-agent PREFIX UID GID [GROUP,GROUP,...]\n");
    return 2;
  }
  prefix = argv[1];
  umask(022);
  become((uid_t)strtoul(argv[2], NULL, 10), (gid_t)strtoul(argv[3], NULL, 10), argc > 4 ? argv[4] : NULL);
  struct sigaction action = {.sa_handler = on_signal};
  if (sigaction(SIGUSR1, &action, NULL) < 0) die("sigaction");
  printf("ok %d\n", (int)getpid());
  fflush(stdout);
  char *line = NULL;
  size_t capacity = 0;
  for (;;) {
    errno = 0;
    ssize_t length = getline(&line, &capacity, stdin);
    if (length < 0 && errno == EINTR) {
      clearerr(stdin);
      continue;
    }
    if (length < 0) return 0;
    memset(words, 0, sizeof words);
    char *rest = line;
    for (int count = 0; count < MAX_WORDS; count++)
      if (!(words[count] = strtok_r(count ? NULL : line, " \n", &rest))) break;
    if (!words[0]) continue;
    perform();
    fflush(stdout);
  }
}
