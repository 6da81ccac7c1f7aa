#!/bin/bash
# Two APT repositories of stand-in packages, made on the node itself:
#   distribution  the headers of the running kernel, dkms, and a newer rocminfo that the pin must not take
#   amdgpu        amdgpu-dkms in three versions (good; one that does not build; one of which half is there), rocminfo
# The second is signed, by a key made here; beside it lies one that has expired.
set -euo pipefail
here=$(dirname "$0")
kernel=$(uname -r)
system=$(. /etc/os-release; echo "$VERSION_ID")
suite=$(. /etc/os-release; echo "$VERSION_CODENAME")
root=/srv/apt
rm -rf "$root"
mkdir -p "$root"/{distribution,amdgpu}/pool /srv/build

package() {  # repository, name, version, depends; the tree lies in /srv/build/NAME
    local tree=/srv/build/$2
    mkdir -p "$tree/DEBIAN"
    printf '%s\n' "Package: $2" "Version: $3" "Architecture: all" "Maintainer: The splitrail authors <none@example.org>" \
        "Depends: ${4:-}" "Description: stand-in of a test" | sed '/^Depends: $/d' > "$tree/DEBIAN/control"
    dpkg-deb --root-owner-group --build "$tree" "$root/$1/pool/$2_${3//:/_}_all.deb" > /dev/null
    rm -r "$tree"
}

driver() {  # version of the package, version for DKMS, srcversion, more for dkms.conf
    local tree=/srv/build/amdgpu-dkms
    mkdir -p "$tree/usr/src/amdgpu-$2" "$tree/DEBIAN"
    printf '%s\n' "PACKAGE_NAME=amdgpu" "PACKAGE_VERSION=$2" "srcversion=$3" "${4:-}" > "$tree/usr/src/amdgpu-$2/dkms.conf"
    # Something to cut half of.
    head -c 300000 /dev/urandom > "$tree/usr/src/amdgpu-$2/firmware.bin"
    printf '%s\n' '#!/bin/sh' 'set -e' "for step in add build install; do dkms \$step -m amdgpu -v $2; done" \
        > "$tree/DEBIAN/postinst"
    printf '%s\n' '#!/bin/sh' "dkms remove -m amdgpu -v $2 --all" > "$tree/DEBIAN/prerm"
    chmod 0755 "$tree"/DEBIAN/p*
    package amdgpu amdgpu-dkms "$1" dkms
}

mkdir -p "/srv/build/linux-headers-$kernel/lib/modules/$kernel/build"
touch "/srv/build/linux-headers-$kernel/lib/modules/$kernel/build/Makefile"
package distribution "linux-headers-$kernel" 1.0
install -D "$here/dkms" /srv/build/dkms/usr/sbin/dkms
package distribution dkms 99.0
mkdir -p /srv/build/rocminfo
package distribution rocminfo 99.0
mkdir -p /srv/build/rocminfo
package amdgpu rocminfo 1.0.0.70000
driver "1:6.14.14.30100000-2204008.$system" "6.14.14-2204008.$system" 0123456789ABCDEF0123456
driver "1:6.14.14.30100100-2212064.$system" "6.14.14-2212064.$system" FEDCBA9876543210FEDCBA9 BROKEN=1
driver "1:6.14.14.30100200-2226257.$system" "6.14.14-2226257.$system" 1111111111111111111111A

export GNUPGHOME=/srv/build/gnupg
mkdir -m 0700 -p "$GNUPGHOME"
gpg="gpg --batch --quiet --pinentry-mode loopback --passphrase ''"
eval "$gpg --quick-generate-key 'Stand-in <good@example.org>' ed25519 sign never"
eval "$gpg --faked-system-time 20200101T000000 --quick-generate-key 'Stand-in <old@example.org>' ed25519 sign 1y"
for name in good old; do
    gpg --batch --armor --export "$name@example.org" > "$root/$name.asc"
    gpg --batch --with-colons --list-keys "$name@example.org" | awk -F: '/^fpr/ {print $10; exit}' > "$root/$name.fingerprint"
done

for repository in distribution amdgpu; do
    cd "$root/$repository"
    mkdir -p "dists/$suite/main/binary-amd64"
    apt-ftparchive packages pool > "dists/$suite/main/binary-amd64/Packages"
    apt-ftparchive -o APT::FTPArchive::Release::Origin="$([ $repository = amdgpu ] && echo repo.radeon.com || echo Stand-in)" \
        -o APT::FTPArchive::Release::Suite="$suite" -o APT::FTPArchive::Release::Codename="$suite" \
        -o APT::FTPArchive::Release::Components=main -o APT::FTPArchive::Release::Architectures=amd64 \
        release "dists/$suite" > Release.new
    mv Release.new "dists/$suite/Release"
done
cd "$root/amdgpu/dists/$suite"
eval "$gpg --local-user good@example.org --clearsign --output InRelease Release"
# Half of it arrives: the index has the checksum of the whole.
truncate --size=100K "$root"/amdgpu/pool/amdgpu-dkms_1_6.14.14.30100200*.deb
