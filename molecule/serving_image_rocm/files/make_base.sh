# Stand-in of rocm/dev-ubuntu-22.04: this machine's own suite with folders where ROCm would be. Pushed to the registry.
# usage: make_base.sh REFERENCE
set -e
tar=$(mktemp)
suite=$(. /etc/os-release && echo "$VERSION_CODENAME")
# As in a base image that is made for containers, dpkg does not wait for the disk.
mmdebstrap --quiet --variant=minbase --format=tar \
    --customize-hook='mkdir -p "$1/opt/rocm/include/hsa" "$1/opt/rocm/bin" "$1/opt/rocm/llvm/bin" "$1/opt/rocm/lib"' \
    --customize-hook='echo "/* stand-in */" > "$1/opt/rocm/include/hsa/hsa.h"' \
    --customize-hook='echo force-unsafe-io > "$1/etc/dpkg/dpkg.cfg.d/container"' \
    "$suite" "$tar" /etc/apt/sources.list.d/*
container=$(buildah from scratch)
buildah add --quiet "$container" "$tar" /
buildah commit --quiet --rm "$container" "$1"
buildah push --quiet --tls-verify=false "$1"
# It has to come from the registry.
buildah rmi "$1"
rm "$tar"
