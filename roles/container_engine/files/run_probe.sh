#!/bin/sh
# Import an image of one program, run it, and remove it again. Usage: run_probe.sh podman|docker
set -eu
engine=$1
program=/bin/true
image=localhost/splitrail-probe:$$
root=$(mktemp -d)
trap 'rm -rf "$root"; "$engine" image rm --force "$image" >/dev/null 2>&1' EXIT
for file in "$program" $(ldd "$program" | grep -o '/[^ ]*'); do
  install -D "$file" "$root$file"
done
tar -C "$root" -c . | "$engine" import - "$image" >/dev/null 2>&1
"$engine" run --rm --network host "$image" "$program"
