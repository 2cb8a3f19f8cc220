# Google's guest agent on a copy of this machine's files that is gone with it. $1: an empty directory for that; $2: the agent.
set -eu
mount -t tmpfs none "$1"
mkdir "$1/upper" "$1/work" "$1/root"
mount -t overlay none -o "lowerdir=/,upperdir=$1/upper,workdir=$1/work" "$1/root"
mount -t proc none "$1/root/proc"
: >"$1/root/dev/null"
mount --bind /dev/null "$1/root/dev/null"
mkdir -p "$1/root/etc/sudoers.d" "$1/root/etc/default"
cat >"$1/root/etc/default/instance_configs.cfg" <<'X'
[Daemons]
clock_skew_daemon = false
network_daemon = false
[InstanceSetup]
set_host_keys = false
set_boto_config = false
network_enabled = false
[NetworkInterfaces]
setup = false
X
cp "$2" "$1/root/usr/local/bin/"
exec chroot "$1/root" /usr/local/bin/google_guest_agent
