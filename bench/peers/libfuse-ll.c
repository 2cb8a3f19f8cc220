/*
 * The peer of group c: the least that libfuse's low-level API needs to serve two files, on one thread.
 *
 *   static   world-readable, cached by the kernel for an hour, pages kept over opens
 *   direct   root's 0400, never cached: entry and attribute TTL 0, FOPEN_DIRECT_IO
 *
 * usage: libfuse-ll MOUNTPOINT SIZE_BYTES      ends with SIGINT or SIGTERM, unmounting
 */
#define _GNU_SOURCE
#define FUSE_USE_VERSION 312
#include <errno.h>
#include <fcntl.h>
#include <fuse_lowlevel.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

enum { STATIC = 2, DIRECT = 3 };
static char *value;
static size_t size;
static struct timespec born;

static double ttl(fuse_ino_t ino) { return ino == DIRECT ? 0.0 : 3600.0; }

static int attributes(fuse_ino_t ino, struct stat *st) {
  memset(st, 0, sizeof *st);
  st->st_ino = ino;
  st->st_mtim = st->st_ctim = st->st_atim = born;
  switch (ino) {
  case FUSE_ROOT_ID:
    st->st_mode = S_IFDIR | 0755;
    st->st_nlink = 2;
    return 0;
  case STATIC:
  case DIRECT:
    st->st_mode = S_IFREG | (ino == STATIC ? 0444 : 0400);
    st->st_nlink = 1;
    st->st_size = size;
    st->st_blocks = (size + 511) / 512;
    return 0;
  }
  return -1;
}

static void ll_lookup(fuse_req_t req, fuse_ino_t parent, const char *name) {
  struct fuse_entry_param e = {0};
  e.ino = parent != FUSE_ROOT_ID ? 0 : !strcmp(name, "static") ? STATIC : !strcmp(name, "direct") ? DIRECT : 0;
  if (!e.ino) {
    fuse_reply_err(req, ENOENT);
    return;
  }
  e.attr_timeout = e.entry_timeout = ttl(e.ino);
  attributes(e.ino, &e.attr);
  fuse_reply_entry(req, &e);
}

static void ll_getattr(fuse_req_t req, fuse_ino_t ino, struct fuse_file_info *fi) {
  struct stat st;
  (void)fi;
  if (attributes(ino, &st))
    fuse_reply_err(req, ENOENT);
  else
    fuse_reply_attr(req, &st, ttl(ino));
}

static void ll_open(fuse_req_t req, fuse_ino_t ino, struct fuse_file_info *fi) {
  const struct fuse_ctx *caller = fuse_req_ctx(req);
  if (ino == FUSE_ROOT_ID) {
    fuse_reply_err(req, EISDIR);
    return;
  }
  if ((fi->flags & O_ACCMODE) != O_RDONLY || (ino == DIRECT && caller->uid != 0)) {
    fuse_reply_err(req, EACCES);
    return;
  }
  fi->keep_cache = ino == STATIC;
  fi->direct_io = ino == DIRECT;
  fuse_reply_open(req, fi);
}

static void ll_read(fuse_req_t req, fuse_ino_t ino, size_t want, off_t offset, struct fuse_file_info *fi) {
  (void)ino;
  (void)fi;
  if ((size_t)offset >= size)
    fuse_reply_buf(req, NULL, 0);
  else
    fuse_reply_buf(req, value + offset, want < size - offset ? want : size - offset);
}

static void ll_release(fuse_req_t req, fuse_ino_t ino, struct fuse_file_info *fi) {
  (void)ino;
  (void)fi;
  fuse_reply_err(req, 0);
}

static const struct fuse_lowlevel_ops operations = {
    .lookup = ll_lookup,
    .getattr = ll_getattr,
    .open = ll_open,
    .read = ll_read,
    .release = ll_release,
};

int main(int argc, char **argv) {
  if (argc != 3) {
    fprintf(stderr, "usage: libfuse-ll MOUNTPOINT SIZE_BYTES\n");
    return 2;
  }
  size = strtoul(argv[2], NULL, 10);
  value = malloc(size);
  memset(value, 'x', size);
  clock_gettime(CLOCK_REALTIME, &born);

  char *words[] = {argv[0], "-oallow_other,fsname=libfuse-ll"};
  struct fuse_args args = FUSE_ARGS_INIT(2, words);
  struct fuse_session *session = fuse_session_new(&args, &operations, sizeof operations, NULL);
  if (!session || fuse_set_signal_handlers(session) || fuse_session_mount(session, argv[1])) {
    fprintf(stderr, "libfuse-ll: mounting %s failed\n", argv[1]);
    return 1;
  }
  int result = fuse_session_loop(session);
  fuse_session_unmount(session);
  fuse_remove_signal_handlers(session);
  fuse_session_destroy(session);
  return result < 0 ? 1 : 0;
}
