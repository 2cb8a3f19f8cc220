/*
 * The guest's end of the control channel: runs commands for the host as any user, many at once, with exact bytes.
 *
 * Channel: the virtio-serial port named org.porthole.control. After opening it the service writes HELLO; the host
 * answers with SYNC, and both drop what they received before the other's greeting, so that a channel which outlives a
 * reset starts clean. After that, frames in both directions, little endian:
 *
 *   u32 size of what follows | u32 job | u8 type | payload
 *
 *   host to guest                                       guest to host
 *   'r' run: u32 uid, gid, group count, groups,         'o' standard output bytes
 *       then the arguments, each ended by NUL           'e' standard error bytes
 *   'i' standard input bytes                            'p' u32 pid, once the job runs
 *   'c' close standard input                            'x' u32 exit code, u32 signal (0: exited); ends the job
 *   'k' u32 signal, sent to the job's process group
 *
 * A job ends when its first process has ended and what it wrote has been sent; processes it left behind live on.
 * Runs as process 1 and then reaps every orphan as well.
 */
#include <errno.h>
#include <fcntl.h>
#include <grp.h>
#include <poll.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/signalfd.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "port.h"

#define HELLO "\nporthole-hello1"
#define SYNC "\nporthole-sync-1"
#define GREETING 16
#define FRAME_MAX (8u << 20)
#define JOBS_MAX 256
#define CHUNK 65536

struct job {
  uint32_t id;
  pid_t pid;
  int in, out, err; /* -1 when closed */
  char *input;      /* standard input not yet taken by the job */
  size_t input_size, input_at;
  int close_input;
  int ended, status;
};

static struct job jobs[JOBS_MAX];
static size_t job_count;
static int port = -1;

static void die(const char *what) {
  fprintf(stderr, "control: %s: %s\n", what, strerror(errno));
  exit(1);
}

static void write_all(const void *data, size_t size) {
  const char *at = data;
  while (size > 0) {
    ssize_t n = write(port, at, size);
    if (n < 0 && errno == EINTR) continue;
    if (n < 0) die("writing to the control port");
    at += n;
    size -= (size_t)n;
  }
}

static void send_frame(uint32_t id, char type, const void *payload, uint32_t size) {
  static char frame[9 + CHUNK];
  uint32_t rest = size + 5;
  memcpy(frame, &rest, 4);
  memcpy(frame + 4, &id, 4);
  frame[8] = type;
  memcpy(frame + 9, payload, size);
  write_all(frame, 9 + size);
}

static void greet(void) {
  char seen[GREETING];
  size_t size = 0;
  write_all(HELLO, GREETING);
  while (size < GREETING || memcmp(seen, SYNC, GREETING) != 0) {
    if (size == GREETING) memmove(seen, seen + 1, --size);
    ssize_t n = read(port, seen + size, 1);
    if (n == 0) nanosleep(&(struct timespec){.tv_nsec = 1000000}, NULL); /* the host has not connected yet */
    if (n < 0 && errno != EINTR) die("reading from the control port");
    if (n > 0) size++;
  }
}

static struct job *find_job(uint32_t id) {
  for (size_t i = 0; i < job_count; i++)
    if (jobs[i].id == id) return &jobs[i];
  return NULL;
}

static void close_fd(int *fd) {
  if (*fd >= 0) close(*fd);
  *fd = -1;
}

static void exec_job(uint32_t uid, uint32_t gid, size_t group_count, const gid_t *groups, char **argv, const int *fds) {
  sigset_t none;
  sigemptyset(&none);
  sigprocmask(SIG_SETMASK, &none, NULL);
  setsid();
  for (int i = 0; i < 3; i++) dup2(fds[i], i);
  if (setgroups(group_count, groups) || setresgid(gid, gid, gid) || setresuid(uid, uid, uid) || chdir("/")) {
    perror("control: becoming the user");
    _exit(126);
  }
  umask(022);
  execvp(argv[0], argv);
  perror(argv[0]);
  _exit(127);
}

static void fail_job(uint32_t id, const char *why) {
  uint32_t end[2] = {125, 0};
  send_frame(id, 'e', why, (uint32_t)strlen(why));
  send_frame(id, 'x', end, sizeof end);
}

static void run_job(uint32_t id, char *payload, size_t size) {
  uint32_t head[3];
  if (size < sizeof head) return fail_job(id, "control: run frame too short\n");
  memcpy(head, payload, sizeof head);
  size_t groups_size = (size_t)head[2] * 4, at = sizeof head + groups_size;
  if (head[2] > 1024 || at >= size || payload[size - 1] != 0) return fail_job(id, "control: bad run frame\n");
  if (job_count == JOBS_MAX) return fail_job(id, "control: too many jobs\n");

  static gid_t groups[1024];
  memcpy(groups, payload + sizeof head, groups_size);
  char *argv[64];
  size_t argc = 0;
  for (; at < size && argc < 63; at += strlen(payload + at) + 1) argv[argc++] = payload + at;
  argv[argc] = NULL;

  int in[2], out[2], err[2];
  if (pipe2(in, O_CLOEXEC) || pipe2(out, O_CLOEXEC) || pipe2(err, O_CLOEXEC)) die("making pipes");
  pid_t pid = fork();
  if (pid < 0) die("fork");
  if (pid == 0) exec_job(head[0], head[1], head[2], groups, argv, (int[]){in[0], out[1], err[1]});
  close(in[0]);
  close(out[1]);
  close(err[1]);
  fcntl(in[1], F_SETFL, O_NONBLOCK);
  fcntl(out[0], F_SETFL, O_NONBLOCK);
  fcntl(err[0], F_SETFL, O_NONBLOCK);
  jobs[job_count++] = (struct job){.id = id, .pid = pid, .in = in[1], .out = out[0], .err = err[0]};
  uint32_t number = (uint32_t)pid;
  send_frame(id, 'p', &number, 4);
}

static void add_input(struct job *job, const char *data, size_t size) {
  if (job->in < 0) return;
  memmove(job->input, job->input + job->input_at, job->input_size - job->input_at);
  job->input_size -= job->input_at;
  job->input_at = 0;
  job->input = realloc(job->input, job->input_size + size);
  if (!job->input) die("memory for standard input");
  memcpy(job->input + job->input_size, data, size);
  job->input_size += size;
}

static void feed(struct job *job) {
  while (job->in >= 0 && job->input_at < job->input_size) {
    ssize_t n = write(job->in, job->input + job->input_at, job->input_size - job->input_at);
    if (n < 0 && errno == EAGAIN) return;
    if (n < 0) return close_fd(&job->in);
    job->input_at += (size_t)n;
  }
  if (job->close_input) close_fd(&job->in);
}

/* Sends one chunk; false once nothing more is there for now. */
static int forward(struct job *job, int *fd, char type) {
  static char chunk[CHUNK];
  if (*fd < 0) return 0;
  ssize_t n = read(*fd, chunk, sizeof chunk);
  if (n > 0) send_frame(job->id, type, chunk, (uint32_t)n);
  if (n == 0) close_fd(fd);
  return n > 0;
}

static void handle_frame(uint32_t id, char type, char *payload, size_t size) {
  struct job *job = find_job(id);
  uint32_t number = 0;
  if (type == 'r') return run_job(id, payload, size);
  if (!job) return; /* it has ended meanwhile */
  switch (type) {
  case 'i':
    add_input(job, payload, size);
    break;
  case 'c':
    job->close_input = 1;
    break;
  case 'k':
    if (size == 4) memcpy(&number, payload, 4);
    if (!job->ended) kill(-job->pid, (int)number);
    break;
  }
  feed(job);
}

/* Reads what is there and handles the whole frames in it. */
static void receive(void) {
  static char *buffer;
  static size_t size, capacity;
  if (capacity - size < CHUNK) buffer = realloc(buffer, capacity += CHUNK);
  if (!buffer) die("memory for frames");
  ssize_t n = read(port, buffer + size, capacity - size);
  if (n < 0 && errno != EAGAIN && errno != EINTR) die("reading from the control port");
  if (n <= 0) return;
  size += (size_t)n;
  size_t at = 0;
  for (uint32_t rest, id; size - at >= 9; at += 4 + rest) {
    memcpy(&rest, buffer + at, 4);
    memcpy(&id, buffer + at + 4, 4);
    if (rest < 5 || rest > FRAME_MAX) {
      errno = EPROTO;
      die("frame size");
    }
    if (size - at < 4 + (size_t)rest) break;
    handle_frame(id, buffer[at + 8], buffer + at + 9, rest - 5);
  }
  memmove(buffer, buffer + at, size - at);
  size -= at;
}

static void reap(void) {
  int status;
  for (pid_t pid; (pid = waitpid(-1, &status, WNOHANG)) > 0;)
    for (size_t i = 0; i < job_count; i++)
      if (jobs[i].pid == pid && !jobs[i].ended) {
        jobs[i].ended = 1;
        jobs[i].status = status;
      }
}

static void finish_ended(void) {
  for (size_t i = 0; i < job_count; i++) {
    struct job *job = &jobs[i];
    if (!job->ended) continue;
    while (forward(job, &job->out, 'o')) continue;
    while (forward(job, &job->err, 'e')) continue;
    uint32_t signal = WIFSIGNALED(job->status) ? (uint32_t)WTERMSIG(job->status) : 0;
    uint32_t end[2] = {signal ? 128 + signal : (uint32_t)WEXITSTATUS(job->status), signal};
    send_frame(job->id, 'x', end, sizeof end);
    close_fd(&job->in);
    close_fd(&job->out);
    close_fd(&job->err);
    free(job->input);
    *job = jobs[--job_count];
    i--;
  }
}

int main(void) {
  sigset_t child;
  sigemptyset(&child);
  sigaddset(&child, SIGCHLD);
  sigprocmask(SIG_BLOCK, &child, NULL);
  signal(SIGPIPE, SIG_IGN);
  int children = signalfd(-1, &child, SFD_CLOEXEC | SFD_NONBLOCK);
  if (children < 0) die("signalfd");
  setenv("PATH", "/usr/sbin:/usr/bin:/sbin:/bin", 1);
  setenv("LC_ALL", "C", 1);
  port = open_port("org.porthole.control");
  if (port < 0) die("opening port org.porthole.control");
  greet();

  for (;;) {
    static struct pollfd fds[2 + 3 * JOBS_MAX];
    fds[0] = (struct pollfd){.fd = port, .events = POLLIN};
    fds[1] = (struct pollfd){.fd = children, .events = POLLIN};
    for (size_t i = 0; i < job_count; i++) {
      struct job *job = &jobs[i];
      int hungry = job->input_at < job->input_size;
      fds[2 + 3 * i] = (struct pollfd){.fd = hungry ? job->in : -1, .events = POLLOUT};
      fds[3 + 3 * i] = (struct pollfd){.fd = job->out, .events = POLLIN};
      fds[4 + 3 * i] = (struct pollfd){.fd = job->err, .events = POLLIN};
    }
    if (poll(fds, 2 + 3 * job_count, -1) < 0 && errno != EINTR) die("poll");
    for (size_t i = 0; i < job_count; i++) {
      if (fds[2 + 3 * i].revents) feed(&jobs[i]);
      if (fds[3 + 3 * i].revents) forward(&jobs[i], &jobs[i].out, 'o');
      if (fds[4 + 3 * i].revents) forward(&jobs[i], &jobs[i].err, 'e');
    }
    if (fds[1].revents) {
      struct signalfd_siginfo info;
      while (read(children, &info, sizeof info) > 0) continue;
      reap();
    }
    if (fds[0].revents & POLLIN) receive();
    finish_ended();
  }
}
