#!/bin/sh
# What the log's disk is and how it is set up. Reads only; the run of `bench` measures the disk itself.
#
#   tuning/disk-check.sh DIRECTORY
set -eu
dir=${1:?usage: $0 DIRECTORY}
[ -d "$dir" ] || { echo "$dir: missing directory; create it first" >&2; exit 2; }

source=$(df --output=source "$dir" | tail -n 1)
echo "file system:   $(df --output=fstype "$dir" | tail -n 1) on $source"
echo "free:          $(df -h --output=avail "$dir" | tail -n 1 | tr -d ' ')   (a shard needs at least 4 segments: 256 MiB)"

# Partitions have no queue of their own: ask the disk they lie on.
name=$(basename "$(readlink -f "$source" 2>/dev/null || echo "$source")")
[ -d "/sys/class/block/$name/queue" ] || name=$(basename "$(readlink -f "/sys/class/block/$name/.." 2>/dev/null || echo none)")
queue=/sys/class/block/$name/queue
if [ ! -d "$queue" ]; then
    echo "disk:          cannot be seen from here (container, network or memory file system)"
    exit 0
fi
for key in rotational logical_block_size physical_block_size write_cache scheduler; do
    [ -r "$queue/$key" ] && printf '%-14s %s\n' "$key:" "$(cat "$queue/$key")"
done
echo
echo "write_cache \"write back\" is normal: synced writes then ask the disk to flush. \"write through\" on a"
echo "disk without power-loss protection means that someone told the kernel not to ask; undo that."
echo "scheduler: none is best for NVMe.   try: echo none | sudo tee $queue/scheduler   undo: echo the old one"
echo "logical_block_size above 4096: set wal.block_bytes to it."
