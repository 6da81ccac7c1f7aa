"""The command line of a VM node, and whether KVM may run it."""

from __future__ import annotations

import json
import time
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest

from splitrail.lab import qemu
from splitrail.lab.qemu import Machine, Nic

MACHINE = Machine(
    name="try.n1",
    folder=Path("/state/n,1"),
    kernel=Path("/image/vmlinuz"),
    memory_mib=1536,
    cpus=2,
    nics=[
        Nic("rail0", "sr0", "02:00:00:00:00:01", 9000),
        Nic("rail1", "sr1", "02:00:00:00:00:02", 9000),
        Nic("mgmt", "sr2", "02:00:00:00:00:03"),
    ],
    shares=[Path("/cache/a,b.ext4")],
    kvm=False,
)


def after(argv: list[str], option: str) -> list[str]:
    """The values of an option."""
    return [value for name, value in pairwise(argv) if name == option]


def test_command_line() -> None:
    argv = qemu.arguments(MACHINE)
    assert argv[:3] == ["qemu-system-x86_64", "-name", "try.n1"]
    assert after(argv, "-m") == ["1536M"]
    assert after(argv, "-smp") == ["2"]
    assert after(argv, "-qmp") == ["unix:/state/n,1/qmp.sock,server=on,wait=off"]
    # QEMU's own way to write a comma.
    assert after(argv, "-blockdev")[0].endswith("file.filename=/state/n,,1/disk.qcow2")
    assert "-loadvm" not in argv
    assert after(qemu.arguments(replace(MACHINE, snapshot="clean")), "-loadvm") == ["clean"]


def test_a_share_is_a_disk_that_the_guest_only_reads() -> None:
    argv = qemu.arguments(MACHINE)
    assert after(argv, "-blockdev")[1] == (
        "driver=raw,node-name=share0,read-only=on,file.driver=file,file.filename=/cache/a,,b.ext4"
    )
    assert "virtio-blk-pci,drive=share0,serial=share0,bus=pcie.0,addr=0x12" in after(argv, "-device")


def test_each_nic_has_a_root_port_in_its_order() -> None:
    argv = qemu.arguments(MACHINE)
    ports = [value for value in after(argv, "-device") if value.startswith("pcie-root-port,")]
    cards = [value for value in after(argv, "-device") if value.startswith("virtio-net-pci,")]
    assert [port.split(",")[1:4] for port in ports] == [
        ["id=port0", "bus=pcie.0", "addr=0x2"],
        ["id=port1", "bus=pcie.0", "addr=0x3"],
        ["id=port2", "bus=pcie.0", "addr=0x4"],
    ]
    assert "netdev=rail1,mac=02:00:00:00:00:02,bus=port1" in cards[1]
    assert [card.endswith(",host_mtu=9000") for card in cards] == [True, True, False]
    assert "tap,id=rail1,ifname=sr1,script=no,downscript=no" in after(argv, "-netdev")
    assert [qemu.pci(position) for position in range(2)] == ["0000:01:00.0", "0000:02:00.0"]


@pytest.mark.parametrize(
    ("kvm", "accelerator", "cpu"), [(True, "kvm", "host"), (False, "tcg,thread=multi", "max")]
)
def test_accelerator(kvm: bool, accelerator: str, cpu: str) -> None:
    argv = qemu.arguments(replace(MACHINE, kvm=kvm))
    assert after(argv, "-accel")[0].startswith(accelerator)
    assert after(argv, "-cpu") == [cpu]


def stand_in(folder: Path, body: str) -> str:
    """A QEMU that does `body`, and notes each run but those for its version."""
    program = folder / "qemu"
    program.write_text(
        f'#!/bin/sh\n[ "$1" != --version ] || {{ echo "QEMU 7"; exit; }}\necho run >>{folder}/runs\n{body}\n'
    )
    program.chmod(0o755)
    return str(program)


@pytest.mark.parametrize(
    ("body", "answer"),
    [
        ("echo 'Linux version 6.1.0'", True),
        # A guest that prints and then hangs has still run.
        ("echo 'Linux version 6.1.0'; exec sleep 60", True),
        ("exec sleep 60", False),
        ("echo 'failed to set MSR'; exit 134", False),
        ("echo 'Probing EDD (edd=off to disable)... ok'; exec sleep 60", False),
    ],
)
def test_only_a_guest_that_prints_makes_kvm_usable(tmp_path: Path, body: str, answer: bool) -> None:
    began = time.monotonic()
    assert qemu.prints(Path("/vmlinuz"), stand_in(tmp_path, body), seconds=1) is answer
    assert time.monotonic() - began < 10


def test_the_answer_is_kept_for_one_boot_of_the_host(tmp_path: Path) -> None:
    program = stand_in(tmp_path, "echo 'Linux version 6.1.0'")
    device, record = tmp_path / "kvm", tmp_path / "kvm.json"
    assert qemu.usable_kvm(Path("/vmlinuz"), record, device, program) is False
    assert not record.exists()
    device.touch()
    assert qemu.usable_kvm(Path("/vmlinuz"), record, device, program)
    assert qemu.usable_kvm(Path("/vmlinuz"), record, device, program)
    assert (tmp_path / "runs").read_text().count("run") == 1
    record.write_text(json.dumps({**json.loads(record.read_text()), "boot": "an older one", "kvm": False}))
    assert qemu.usable_kvm(Path("/vmlinuz"), record, device, program)
    record.write_text("cut sho")
    assert qemu.usable_kvm(Path("/vmlinuz"), record, device, program)
    assert (tmp_path / "runs").read_text().count("run") == 3
