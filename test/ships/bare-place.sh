# A place where nothing is but the executables: no node_modules, no directory that is both writable and executable, a root that
# cannot be written. Run it in a mount namespace of its own: $1 is the executable, $2 a directory of files, which are put
# there. It runs the commands on standard input there, with the executable as $porthole and that of agents as $agent. The place is not under /tmp, which is
# hidden, and every user can get to it.
set -eu
executable=$1 files=$2 place=/mnt
mount --make-rprivate /
mount -t tmpfs -o mode=0755 tmpfs "$place"
mkdir "$place/bin" "$place/work"
cp "$executable" "$executable-agent" "$place/bin"
mount -t tmpfs -o noexec tmpfs "$place/work"
cp "$files"/* "$place/work"
mount -o remount,ro "$place"
for directory in /run /tmp /var/tmp /dev/shm; do mount -t tmpfs -o noexec tmpfs "$directory"; done
mount -o remount,bind,ro /
cd "$place/work"
if cp /bin/true . && ./true 2>/dev/null; then echo "what is written can be executed" >&2 && exit 1; fi
if touch /porthole 2>/dev/null; then echo "the root can be written" >&2 && exit 1; fi
exec env -i PATH="$PATH" porthole="$place/bin/porthole" agent="$place/bin/porthole-agent" sh -eu
