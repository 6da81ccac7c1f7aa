#!/bin/sh
# Stand-in of UCX's: the real one makes configure with these.
set -e
for tool in autoconf automake libtoolize pkg-config; do
    command -v "$tool" > /dev/null || { echo "autogen.sh: $tool is not installed" >&2; exit 1; }
done
cp configure.in configure
chmod +x configure
