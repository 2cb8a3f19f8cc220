#!/bin/sh
# In a network namespace of its own: a VM's tap device (tap0), with the VM behind it and another machine behind the VM; and
# another VM's (tap1). Prints "VM FAR OTHER", the processes that hold their networks, then runs the arguments.
set -e
ip link set lo up
hold() {
  unshare --net sleep 600 >/dev/null &
  # Until it has a network of its own.
  while [ "$(readlink /proc/$!/ns/net)" = "$(readlink /proc/$$/ns/net)" ]; do :; done
}
hold; vm=$!
hold; far=$!
hold; other=$!
in_() { nsenter --net --target "$@"; }
ip link add tap0 type veth peer name eth0 netns $vm
ip link add tap1 type veth peer name eth0 netns $other
in_ $vm ip link add eth1 type veth peer name eth0 netns $far
ip address add 169.254.169.254/32 dev tap0
for tap in tap0 tap1; do ip link set $tap up; done
ip route add 10.9.0.2/32 dev tap0
ip route add 10.8.0.0/24 via 10.9.0.2 dev tap0 onlink
ip route add 10.7.0.2/32 dev tap1
in_ $vm sh -c 'ip link set eth0 up; ip address add 10.9.0.2/32 dev eth0; ip route add 169.254.169.254/32 dev eth0
  ip link set eth1 up; ip address add 10.8.0.1/24 dev eth1; echo 1 >/proc/sys/net/ipv4/ip_forward'
in_ $far sh -c 'ip link set eth0 up; ip address add 10.8.0.2/24 dev eth0; ip route add default via 10.8.0.1'
in_ $other sh -c 'ip link set eth0 up; ip address add 10.7.0.2/32 dev eth0; ip route add 169.254.169.254/32 dev eth0'
echo "$vm $far $other"
trap 'kill $vm $far $other' EXIT
"$@"
