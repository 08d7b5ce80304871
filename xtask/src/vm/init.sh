#!/bin/busybox sh
# Init of the virtual machines of `cargo xtask vm`: arranges what a node has, runs `guest`, and switches off.
# What is said here comes on the first serial port, the console; what `guest` tells on the second.
export PATH=/usr/sbin:/usr/bin:/sbin:/bin
/bin/busybox mkdir -p /proc /sys /dev /run /tmp /root
/bin/busybox --install -s /bin
mount -t devtmpfs dev /dev
exec </dev/null >/dev/ttyS0 2>&1
mount -t proc proc /proc
mount -t sysfs sys /sys
mount -t tmpfs run /run
mount -t tmpfs tmp /tmp
mount -t cgroup2 cgroup /sys/fs/cgroup
mount -t bpf bpf /sys/fs/bpf
# Named in the order in which they need each other; what a kernel has built in is not there.
for module in /modules/*; do
    insmod "$module" || echo "init: $module cannot be loaded"
done
if grep -q guest.no-btf /proc/cmdline; then
    mount -o bind /dev/null /sys/kernel/btf/vmlinux
fi
/usr/sbin/ip link set lo up
# As under any service manager, the root of the hierarchy has no processes of ours.
mkdir /sys/fs/cgroup/guest
# Whoever started the machine may be gone.
(sleep 1200; poweroff -f) &
echo $$ >/sys/fs/cgroup/guest/cgroup.procs
stty -F /dev/ttyS1 raw -echo
SIDECAR_BIN=/opt/sidecar /opt/guest/guest >/dev/ttyS1
echo "init: guest ended with $?"
# The port has to send what is left.
sleep 1
poweroff -f
