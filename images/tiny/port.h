/* Finds a virtio-serial port by the name that QEMU's command line gives it. */
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <time.h>

/* Waits up to 5 s for the port, because the driver learns names after it has started; -1 with errno when it is absent. */
static int open_port(const char *wanted) {
  for (int tries = 0; tries < 5000; tries++) {
    DIR *dir = opendir("/sys/class/virtio-ports");
    for (struct dirent *entry; dir && (entry = readdir(dir));) {
      char path[300], name[64] = "";
      snprintf(path, sizeof path, "/sys/class/virtio-ports/%s/name", entry->d_name);
      FILE *file = fopen(path, "r");
      if (!file) continue;
      int found = fscanf(file, "%63s", name) == 1 && strcmp(name, wanted) == 0;
      fclose(file);
      if (!found) continue;
      snprintf(path, sizeof path, "/dev/%s", entry->d_name);
      closedir(dir);
      return open(path, O_RDWR | O_CLOEXEC);
    }
    if (dir) closedir(dir);
    nanosleep(&(struct timespec){.tv_nsec = 1000000}, NULL);
  }
  errno = ENODEV;
  return -1;
}
