/*
 * kexec KERNEL INITRAMFS: loads a kernel with this one's command line. kexec alone: starts the loaded kernel at once,
 * without stopping anything first. (Debian's kexec-tools need Xen's libraries.)
 */
#include <fcntl.h>
#include <linux/reboot.h>
#include <stdio.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>

int main(int argc, char **argv) {
  if (argc == 1) {
    syscall(SYS_reboot, LINUX_REBOOT_MAGIC1, LINUX_REBOOT_MAGIC2, LINUX_REBOOT_CMD_KEXEC, NULL);
    return perror("kexec: starting the loaded kernel"), 1;
  }
  if (argc != 3) return fprintf(stderr, "usage: kexec [KERNEL INITRAMFS]\n"), 2;
  int kernel = open(argv[1], O_RDONLY), initramfs = open(argv[2], O_RDONLY), source = open("/proc/cmdline", O_RDONLY);
  if (kernel < 0 || initramfs < 0 || source < 0) return perror("kexec: opening the kernel, initramfs or command line"), 1;
  char line[4096];
  ssize_t size = read(source, line, sizeof line - 1);
  if (size < 0) return perror("/proc/cmdline"), 1;
  line[size] = 0;
  line[strcspn(line, "\n")] = 0;
  if (syscall(SYS_kexec_file_load, kernel, initramfs, strlen(line) + 1, line, 0UL)) return perror("kexec: loading"), 1;
}
