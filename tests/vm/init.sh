#!/bin/busybox sh
# First process of a test's guest. The host's root comes read-only over 9p with a tmpfs above it, so that the guest may
# install things; then tests/vm/inside.py, in that root, does what the test asks. Arguments come from the kernel's
# command line: gpupool.python=PATH gpupool.inside=PATH gpupool.msize=BYTES.
/bin/busybox --install -s /bin
export PATH=/bin
mount -t proc proc /proc
mount -t devtmpfs dev /dev
while read -r module; do insmod "/modules/$module" || echo "init: $module did not load"; done </modules/order
msize=131072
read -r words </proc/cmdline
for word in $words; do
  case $word in
    gpupool.python=*) python=${word#*=} ;;
    gpupool.inside=*) inside=${word#*=} ;;
    gpupool.msize=*) msize=${word#*=} ;;
  esac
done
mkdir /low /up
# Nothing changes below a running guest but what a test writes for it: read once, keep (cache=loose).
mount -t 9p -o "ro,trans=virtio,version=9p2000.L,cache=loose,msize=$msize" root /low || exec poweroff -f
mount -t tmpfs -o size=50% up /up
mkdir /up/upper /up/work
mount -t overlay -o lowerdir=/low,upperdir=/up/upper,workdir=/up/work root /new || exec poweroff -f
mount -t tmpfs run /new/run
mount -t tmpfs shm /new/mnt
mkdir -p /new/run/test
cp /bin/busybox /new/run/test/busybox
echo "init: root is there after $(cut -d' ' -f1 /proc/uptime) s"
for folder in proc dev; do mount --move /$folder /new/$folder; done
mount -t sysfs sys /new/sys
mkdir -p /new/dev/shm /new/dev/pts
mount -t tmpfs shm /new/dev/shm
export PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin HOME=/root
# The shell stays as the first process and collects orphans; when the program ends, so does the machine.
exec switch_root /new /run/test/busybox sh -c "$python -I $inside; /run/test/busybox poweroff -f"
