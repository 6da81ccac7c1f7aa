#!/bin/bash
# Stand-in of RIXL's script: takes its arguments, and fails where the real one would make a wheel that does not load.
set -e
die() { echo "build-wheel.sh: $*" >&2; exit 1; }
platform=manylinux_2_39_x86_64 output=dist
while [ $# -gt 0 ]; do
    case $1 in
        --python-version) python=$2 ;;
        --platform) platform=$2 ;;
        --output-dir) output=$2 ;;
        --ucx-plugins-dir) ucx_plugins=$2 ;;
        --nixl-plugins-dir) nixl_plugins=$2 ;;
        --rocm-dir) rocm=$2 ;;
        *) die "unknown argument: $1" ;;
    esac
    shift 2
done
# shellcheck disable=SC2154 # as in the real one: whoever calls it has to set it
[ -f "$_ucx_install_dir/lib/libucp.so" ] || die "_ucx_install_dir is '$_ucx_install_dir', which is no UCX"
[ -d "$rocm" ] || die "--rocm-dir $rocm is not there, so this would be a CUDA build"
[ -f "$ucx_plugins/libuct_rocm.so" ] || echo "build-wheel.sh: no ROCm module in $ucx_plugins" >&2
[ -f "$nixl_plugins/libplugin_UCX.so" ] || die "no plugin UCX in --nixl-plugins-dir $nixl_plugins"
[[ :$LD_LIBRARY_PATH: == *:$_ucx_install_dir/lib:* ]] || die "auditwheel would not find UCX in LD_LIBRARY_PATH"
glibc=$(getconf GNU_LIBC_VERSION | sed 's/.*\.//')
[[ $platform =~ ^manylinux_2_([0-9]+)_ ]] && [ "${BASH_REMATCH[1]}" -le "$glibc" ] \
    || die "a wheel for $platform does not install on this glibc 2.$glibc"
cp "$nixl_plugins"/*.so rixl/
printf '[bdist_wheel]\nplat_name = %s\n' "$platform" > setup.cfg
uv build --wheel --python "$python" --out-dir "$output"
