#!/bin/sh
# Runs systemd as process 1 of namespaces of its own, over this machine's file system, which it cannot change.
# usage: unshare --mount --pid --uts --ipc --cgroup --fork --kill-child sh boot.sh DIRECTORY COMMAND...
# The command runs as a service with DIRECTORY as /run/out, its output in DIRECTORY/log; systemd ends after it.
set -e
out=$1
shift
mount --make-rprivate /
mount -t tmpfs none "$out/mnt"
cd "$out/mnt"
mkdir upper work root
mount -t overlay -o "lowerdir=/,upperdir=upper,workdir=work" none root
cd root
mount -t proc proc proc
mount --rbind /dev dev
mount -t sysfs -o ro sys sys
mount -t tmpfs none sys/fs/cgroup
mount -t cgroup2 none sys/fs/cgroup
mount -t tmpfs none run
mkdir run/out
mount --bind "$out" run/out
# It would empty /tmp, where this checkout may be.
ln -s /dev/null etc/systemd/system/systemd-tmpfiles-setup.service
cat >etc/systemd/system/inside.service <<UNIT
[Unit]
DefaultDependencies=no
[Service]
Type=oneshot
StandardOutput=append:/run/out/log
StandardError=append:/run/out/log
Environment=PATH=/usr/sbin:/usr/bin:/sbin:/bin
WorkingDirectory=$PWD_INSIDE
ExecStart=$*
ExecStopPost=systemctl --no-block exit 0
UNIT
exec env -i container=other PATH=/usr/sbin:/usr/bin:/sbin:/bin \
  chroot . /lib/systemd/systemd --system --unit=inside.service --log-target=null --show-status=0
