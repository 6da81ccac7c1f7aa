"""The disk and the kernel that every VM node starts from: made once of a root file system, found by key."""

from __future__ import annotations

import hashlib
import json
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from splitrail.lab import rootfs, standins
from splitrail.lab.files import remove_tree
from splitrail.lab.report import Reporter
from splitrail.lab.run import LabError, run

# Raise this when what `_lay_out` or `_make_disk` does changes, so that cached disks are made anew.
BUILDER = 1
# All that a node can ever hold; the file is sparse.
DISK_GIB = 24

# An `apt-get install` takes minutes in an emulated machine: what the roles ask for is there already.
PACKAGES = (
    *("linux-image-amd64", "initramfs-tools", "busybox", "kmod", "udev"),
    *("rdma-core", "ibverbs-providers", "ibverbs-utils", "rdmacm-utils", "infiniband-diags"),
    *("perftest", "ucx-utils", "mstflint", "ethtool", "pciutils", "numactl", "iputils-ping"),
    *("podman", "crun", "catatonit", "buildah", "docker-registry"),
)
# A role starts the registry where it is wanted; the rest costs an emulated boot seconds and does nothing.
_NOT_AT_BOOT = (
    "docker-registry.service",
    "networking.service",
    "podman-auto-update.service",
    "podman-auto-update.timer",
    "podman-restart.service",
)
_GUEST = Path(__file__).parent / "guest"
_UNITS = "/etc/systemd/system"
_INITRAMFS = "/etc/initramfs-tools"


@dataclass(frozen=True)
class Image:
    """A disk with its kernel, and the ids of the nodes' user on it."""

    folder: Path

    @property
    def disk(self) -> Path:
        """The disk, raw; nobody writes to it."""
        return self.folder / "disk.raw"

    @property
    def kernel(self) -> Path:
        """The kernel to boot it with."""
        return self.folder / "vmlinuz"

    @property
    def initrd(self) -> Path:
        """The initial RAM disk, to which a node's identity is appended."""
        return self.folder / "initrd.img"

    @property
    def owner(self) -> tuple[int, int]:
        """User and group id of the nodes' user."""
        user, group = json.loads((self.folder / "owner.json").read_text())
        return user, group


def recipe(user: str) -> rootfs.Recipe:
    """The root file system of a VM node. Raises LabError on a host that is not Debian."""
    said = Path("/etc/os-release").read_text().splitlines()
    if "ID=debian" not in said:
        raise LabError("VM nodes need a Debian host, whose packages they are made of; this is none")
    return rootfs.recipe(
        user,
        PACKAGES,
        {
            f"{_INITRAMFS}/conf.d/splitrail": b"MODULES=list\n",
            f"{_INITRAMFS}/hooks/splitrail": (_GUEST / "initramfs-hook").read_bytes(),
            f"{_INITRAMFS}/scripts/init-bottom/splitrail": (_GUEST / "initramfs-identity").read_bytes(),
        },
    )


def additions() -> dict[str, bytes]:
    """What is laid on the root file system, by absolute path: soft-RoCE's unit, stand-ins and their units."""
    found = {
        "/usr/local/sbin/splitrail-lab-soft-roce": (_GUEST / "soft-roce.sh").read_bytes(),
        f"{_UNITS}/splitrail-lab-soft-roce.service": (_GUEST / "soft-roce.service").read_bytes(),
    }
    with tempfile.TemporaryDirectory() as scratch:
        for path in standins.install(Path(scratch)):
            found[f"/{path.relative_to(scratch)}"] = path.read_bytes()
    for path in sorted(Path(standins.__file__).parent.glob("*.service")):
        found[f"{_UNITS}/{path.name}"] = path.read_bytes()
    return found


def key(wanted: rootfs.Recipe, added: dict[str, bytes]) -> str:
    """A name that is the same exactly when the disk's content would be."""
    content = {
        "builder": BUILDER,
        "rootfs": wanted.key,
        "gib": DISK_GIB,
        "added": {name: hashlib.sha256(data).hexdigest() for name, data in added.items()},
    }
    digest = hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
    return f"{wanted.codename}-{digest[:16]}"


def ensure(user: str, cache: Path, reporter: Reporter) -> Image:
    """The image, made now unless it is there. Raises LabError when that fails."""
    wanted, added = recipe(user), additions()
    store = cache / "vm"
    store.mkdir(parents=True, exist_ok=True)
    store.chmod(0o700)
    done = store / key(wanted, added)
    if done.is_dir():
        return Image(done)
    tree = rootfs.ensure(wanted, cache, reporter)
    with rootfs.locked(store / ".lock", reporter):
        if not done.is_dir():
            building = store / f".building-{done.name}"
            _discard(building)
            building.mkdir()
            with reporter.step("Making the disk of the VM nodes (once)"), _layered(tree, building) as root:
                _lay_out(root, added)
                _make_disk(root, building, user)
            remove_tree(building / "layers")
            building.rename(done)
    return Image(done)


@contextmanager
def _layered(tree: Path, building: Path) -> Iterator[Path]:
    """`tree` as a folder that can be written to, while the tree itself stays as it is."""
    layers = {name: building / "layers" / name for name in ("upper", "work", "root")}
    for folder in layers.values():
        folder.mkdir(parents=True)
    options = f"lowerdir={tree},upperdir={layers['upper']},workdir={layers['work']}"
    run(["mount", "-t", "overlay", "splitrail-image", "-o", options, str(layers["root"])])
    try:
        yield layers["root"]
    finally:
        run(["umount", str(layers["root"])])


def _discard(building: Path) -> None:
    """Remove what a killed build left."""
    root = building / "layers/root"
    if root.is_mount():
        run(["umount", str(root)])
    remove_tree(building)


def _lay_out(root: Path, added: dict[str, bytes]) -> None:
    units = []
    for name, data in added.items():
        path = root / name.lstrip("/")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
        path.chmod(0o755 if data.startswith(b"#!") else 0o644)
        if path.suffix == ".service":
            units.append(path.name)
    (root / "etc/splitrail-lab").mkdir(exist_ok=True)
    run(["chroot", str(root), "/usr/bin/systemctl", "enable", *units])
    run(["chroot", str(root), "/usr/bin/systemctl", "disable", *_NOT_AT_BOOT])


def _make_disk(root: Path, building: Path, user: str) -> None:
    home = (root / "home" / user).stat()
    (building / "owner.json").write_text(json.dumps([home.st_uid, home.st_gid]))
    for name, pattern in (("vmlinuz", "vmlinuz-*"), ("initrd.img", "initrd.img-*")):
        found = sorted((root / "boot").glob(pattern))
        if len(found) != 1:
            raise LabError(f"the root file system has {len(found)} of /boot/{pattern}, not one")
        shutil.copyfile(found[0], building / name)
    disk = building / "disk.raw"
    with disk.open("wb") as handle:
        handle.truncate(DISK_GIB << 30)
    # 32 KiB an inode: a smaller table, which the guest never has to write out.
    run(["mkfs.ext4", "-q", "-F", "-L", "root", "-i", "32768", "-m", "0", "-d", str(root), str(disk)])
