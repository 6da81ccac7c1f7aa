#!/bin/sh
# Makes this machine ready for splitrail: programs from its packages, Python packages into .venv. Harmless when all is
# in place, which takes no time; one that was interrupted is taken up again. `make` calls it.
#
# PYTHON=/path/to/python3.12 names the Python that .venv is made with; by default the first that is 3.11 or later.
set -eu
cd "$(dirname "$0")"
PATH=$PATH:/usr/local/sbin:/usr/sbin:/sbin # a user's own often lacks them
began=$(date +%s)

say() { printf 'setup: %s\n' "$*" >&2; }
die() { say "$*" && exit 2; }

as_root() {
  if [ "$(id -u)" = 0 ]; then
    "$@"
  elif command -v sudo >/dev/null; then
    sudo -p '[splitrail] root installs packages and makes the lab; password of %u: ' "$@"
  else
    die "root must run: $* (this user is not root, and there is no sudo)"
  fi
}

install() {
  command -v apt-get >/dev/null || die "this machine lacks the packages: $*; install them (there is no apt-get here)"
  say "installing with apt: $*"
  as_root apt-get --quiet=2 update || die "the package lists could not be read; see what apt says above"
  # A machine that has just booted may be installing its updates: wait for it.
  as_root env DEBIAN_FRONTEND=noninteractive apt-get --quiet --yes --no-install-recommends \
    -o DPkg::Lock::Timeout=300 install "$@" || die "apt could not install: $*; see what it says above"
}

# ensurepip is what Debian and Ubuntu keep apart, in python3-venv.
usable() { "$1" -c 'import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; }

find_python() {
  for python in ${PYTHON:-python3 python3.13 python3.12 python3.11}; do
    usable "$python" && return
  done
  python=
}

# Programs that the lab and the playbooks call here, each with its package.
packages=
while read -r program package; do
  command -v "$program" >/dev/null || packages="$packages $package"
done <<END
systemd-nspawn systemd-container
qemu-system-x86_64 qemu-system-x86
qemu-img qemu-utils
mkfs.ext4 e2fsprogs
mmdebstrap mmdebstrap
nft nftables
ip iproute2
ssh openssh-client
git git
gpg gnupg
curl curl
/usr/bin/python3 python3
END

stamp=.venv/setup-done
want=$(cat requirements.txt python/pyproject.toml | sha256sum)
here=$(pwd -P)
works() { [ -f $stamp ] && [ "$(sed -n 1p $stamp)" = "$here" ] && .venv/bin/python -c 'pass' 2>/dev/null; }

python=
if ! works; then
  find_python
  if [ -z "$python" ] && [ -z "${PYTHON:-}" ]; then
    if python3 -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || ! command -v python3 >/dev/null; then
      packages="$packages python3-venv"
    else
      packages="$packages python3.11 python3.11-venv" # Ubuntu 22.04's own is 3.10
    fi
  fi
fi
# shellcheck disable=SC2086  # a list of words
[ -z "$packages" ] || install $packages

if ! works; then
  [ -n "$python" ] || find_python
  [ -n "$python" ] || die "no Python 3.11 or later that can make a virtual environment (tried: ${PYTHON:-python3 python3.13 \
python3.12 python3.11}); install one and name it: PYTHON=/path/to/python3.12 make lab"
  say "making .venv with $("$python" --version)"
  "$python" -m venv --clear .venv
elif [ "$(sed -n 2p $stamp)" = "$want" ]; then
  exit 0
fi
# No stamp while .venv is half done: the next run then makes it anew.
rm -f $stamp
say 'installing Python packages into .venv, which takes a minute or two'
.venv/bin/python -m pip install --quiet --no-input --disable-pip-version-check -r requirements.txt -e 'python[dev]' ||
  die 'pip could not install requirements.txt; see what it says above'
printf '%s\n%s\n' "$here" "$want" >$stamp.new
mv $stamp.new $stamp
say "done in $(($(date +%s) - began)) s"
