"""QEMU: the command line of a VM node, and whether this host can run it faster than by emulation."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from splitrail.lab.files import write
from splitrail.lab.run import environment, run

PROGRAM = "qemu-system-x86_64"
RAIL_MTU = 9000
# A guest that KVM really runs prints within a second; some hosts have /dev/kvm and run none.
PROBE_SECONDS = 8.0
_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")
# Where the root ports of the NICs start on the root bus.
_FIRST_SLOT = 2
_DISK_SLOT = 0x10
_RANDOM_SLOT = 0x11
_FIRST_SHARE_SLOT = 0x12
# MiB of translated code that an emulated machine keeps; QEMU's own default grows to 1 GiB.
_TRANSLATED = 128


@dataclass(frozen=True)
class Nic:
    """A NIC of a node: its id in QEMU, the host's interface behind it, its MAC, and its MTU if not 1500."""

    id: str
    tap: str
    mac: str
    mtu: int | None = None


@dataclass(frozen=True)
class Machine:
    """All that decides a VM node's command line."""

    name: str
    folder: Path
    kernel: Path
    memory_mib: int
    cpus: int
    nics: Sequence[Nic]
    shares: Sequence[Path]
    """Disks that the guest reads only."""
    kvm: bool
    snapshot: str | None = None
    """The snapshot to start from, None to boot."""


def pci(position: int) -> str:
    """Where the guest finds the NIC at `position`: behind a root port of its own, numbered in their order."""
    return f"0000:{position + 1:02x}:00.0"


def serial(position: int) -> str:
    """What the guest knows the share at `position` by."""
    return f"share{position}"


def arguments(machine: Machine) -> list[str]:
    """The command line of a node."""
    folder = machine.folder
    accelerator = (
        ["kvm", "-cpu", "host"] if machine.kvm else [f"tcg,thread=multi,tb-size={_TRANSLATED}", "-cpu", "max"]
    )
    argv = [
        *(PROGRAM, "-name", machine.name, "-nodefaults", "-no-user-config", "-display", "none"),
        *("-machine", "q35", "-accel", *accelerator),
        *("-smp", str(machine.cpus), "-m", f"{machine.memory_mib}M", "-rtc", "base=utc"),
        *("-kernel", str(machine.kernel), "-initrd", str(folder / "initrd.img")),
        # The file system's unused inode tables stay unwritten: they would only swell the node's disk.
        *("-append", "root=/dev/vda rw rootflags=noinit_itable console=ttyS0 net.ifnames=1 panic=10"),
        *("-serial", f"file:{folder / 'console.log'}"),
        *("-qmp", f"unix:{socket(folder)},server=on,wait=off"),
        *("-blockdev", f"driver=qcow2,node-name=disk,discard=unmap,{_file(disk(folder))}"),
        *("-device", f"virtio-blk-pci,drive=disk,bus=pcie.0,addr={_DISK_SLOT:#x}"),
        *("-device", f"virtio-rng-pci,bus=pcie.0,addr={_RANDOM_SLOT:#x}"),
    ]
    for position, path in enumerate(machine.shares):
        name = serial(position)
        argv += [
            *("-blockdev", f"driver=raw,node-name={name},read-only=on,{_file(path)}"),
            "-device",
            f"virtio-blk-pci,drive={name},serial={name},bus=pcie.0,addr={_FIRST_SHARE_SLOT + position:#x}",
        ]
    for position, nic in enumerate(machine.nics):
        mtu = f",host_mtu={nic.mtu}" if nic.mtu else ""
        argv += [
            *(
                "-device",
                f"pcie-root-port,id=port{position},bus=pcie.0,addr={_FIRST_SLOT + position:#x}"
                f",chassis={position + 1},slot={position + 1}",
            ),
            *("-netdev", f"tap,id={nic.id},ifname={nic.tap},script=no,downscript=no"),
            *("-device", f"virtio-net-pci,netdev={nic.id},mac={nic.mac},bus=port{position},romfile={mtu}"),
        ]
    return [*argv, "-loadvm", machine.snapshot] if machine.snapshot else argv


def disk(folder: Path) -> Path:
    """A node's own disk, an overlay on the image's."""
    return folder / "disk.qcow2"


def socket(folder: Path) -> Path:
    """A node's QMP socket."""
    return folder / "qmp.sock"


def _file(path: Path) -> str:
    return f"file.driver=file,file.filename={str(path).replace(',', ',,')}"


def usable_kvm(kernel: Path, record: Path, device: Path = Path("/dev/kvm"), program: str = PROGRAM) -> bool:
    """Whether KVM really runs a guest here: asked once a boot of this host, the answer kept in `record`."""
    if not device.exists():
        return False
    now = {"boot": _BOOT_ID.read_text().strip(), "qemu": run([program, "--version"]).splitlines()[0]}
    try:
        known = json.loads(record.read_text())
    except (FileNotFoundError, ValueError):
        known = {}
    if {key: known.get(key) for key in now} == now:
        return bool(known["kvm"])
    answer = prints(kernel, program)
    write(record, json.dumps({**now, "kvm": answer}) + "\n")
    return answer


def prints(kernel: Path, program: str = PROGRAM, seconds: float = PROBE_SECONDS) -> bool:
    """Whether `kernel` prints on its console under KVM within `seconds`."""
    argv = [
        *(program, "-nodefaults", "-no-user-config", "-display", "none", "-no-reboot", "-serial", "stdio"),
        *("-machine", "q35", "-accel", "kvm", "-cpu", "host", "-m", "256M", "-kernel", str(kernel)),
        *("-append", "console=ttyS0 earlyprintk=ttyS0 panic=-1"),
    ]
    try:
        # No root file system: a guest that runs prints its version, panics and leaves.
        said = subprocess.run(
            argv,
            capture_output=True,
            stdin=subprocess.DEVNULL,
            env=environment(),
            timeout=seconds,
            check=False,
        ).stdout
    except subprocess.TimeoutExpired as error:
        said = error.stdout or b""
    return b"Linux version" in said
