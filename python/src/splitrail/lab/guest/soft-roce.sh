#!/bin/sh
# LAB ONLY, the stand-in for the RDMA NIC: makes one soft-RoCE device (rxeN) on the NIC of each rail.
#
# /etc/splitrail-lab/rails, written by the host, has a line a rail: its number and its NIC's PCI address. A NIC is found
# by that address alone, since its name changes (udev's .link files, the role roce_nic), at times while this runs.
set -eu

name_of() { # the interface of the virtio NIC at PCI address $1
  for folder in "/sys/bus/pci/devices/$1"/virtio*/net/*; do
    [ -d "$folder" ] && basename "$folder" && return
  done
  return 1
}

device_on() { # the RDMA device that stands on the interface $1
  for file in /sys/class/infiniband/*/ports/1/gid_attrs/ndevs/0; do
    [ "$(cat "$file" 2>/dev/null)" = "$1" ] && return
  done
  return 1
}

modprobe -a rdma_rxe ib_uverbs rdma_ucm
while read -r rail pci; do
  tries=0
  until name=$(name_of "$pci") && { device_on "$name" || rdma link add "rxe$rail" type rxe netdev "$name"; }; do
    tries=$((tries + 1))
    [ "$tries" -lt 60 ] || { echo "rail $rail: no soft-RoCE device on the NIC at $pci after 30 s" >&2; exit 1; }
    sleep 0.5
  done
done </etc/splitrail-lab/rails
