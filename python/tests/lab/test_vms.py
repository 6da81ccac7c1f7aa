"""A real virtual machine: soft-RoCE rails, a reboot, a cable pulled, a snapshot, and nothing left of it.

Four minutes where it has to be emulated, once the image is in the cache.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from splitrail.lab import process

pytestmark = [
    pytest.mark.lab,
    pytest.mark.skipif(os.geteuid() != 0, reason="making machines, taps and bridges needs root"),
    pytest.mark.skipif(not shutil.which("qemu-system-x86_64"), reason="needs QEMU (qemu-system-x86)"),
]

NAME = "vmtest"
NODE = "vmtest-a"
DEVICES = "cat /sys/class/infiniband/rxe*/ports/1/gid_attrs/ndevs/0"
# A NIC that is renamed while it gets its RDMA device.
LINK = "[Match]\\nPath=pci-0000:01:00.0\\n[Link]\\nName=rail0\\n"
# What tells one boot from another.
BOOT = "cat /proc/sys/kernel/random/boot_id"


class Bench:
    """One lab of one VM, driven as a person would."""

    def __init__(self, folder: Path) -> None:
        self.inventory = folder / "hosts.yml"
        self.inventory.write_text(
            "all:\n  vars:\n"
            f"    lab_name: {NAME}\n    lab_kind: vm\n    lab_network: 10.88.251.0/24\n    lab_rails: 2\n"
            "    lab_memory_mib: 768\n    lab_boot_seconds: 500\n    ansible_user: splitrail\n"
            '    ansible_ssh_private_key_file: "{{ inventory_dir }}/keys/id_ed25519"\n'
            f"  hosts: {{{NODE}: {{ansible_host: 10.88.251.11}}}}\n"
        )

    def lab(self, verb: str, *arguments: str, code: int = 0) -> str:
        """Run `splitrail lab VERB` and return what it printed, with its complaint where one is expected."""
        argv = [sys.executable, "-m", "splitrail.lab", verb, "-i", str(self.inventory), *arguments]
        done = subprocess.run(argv, capture_output=True, text=True, timeout=600, check=False)
        assert done.returncode == code, done.stdout + done.stderr
        return done.stdout + (done.stderr if code else "")

    def on(self, script: str) -> str:
        """Run `script` on the node."""
        return self.lab("ssh", NODE, "--", script).strip()

    def await_other_boot(self, boot: str, seconds: float = 300) -> None:
        """Wait until the node has booted again; meanwhile it does not answer."""
        argv = [sys.executable, "-m", "splitrail.lab", "ssh", "-i", str(self.inventory), NODE, "--", BOOT]
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            # A connection that the crash cut in the middle never ends by itself.
            with suppress(subprocess.TimeoutExpired):
                done = subprocess.run(argv, capture_output=True, text=True, timeout=30, check=False)
                if done.returncode == 0 and done.stdout.strip() != boot:
                    return
            time.sleep(1)
        raise AssertionError(f"{NODE} did not boot again in {seconds:.0f} s")

    def until(self, script: str, said: str, seconds: float = 30) -> None:
        """Run `script` on the node until it prints `said`, for `seconds` at most."""
        deadline = time.monotonic() + seconds
        while (found := self.on(script)) != said:
            assert time.monotonic() < deadline, found
            time.sleep(0.5)


def traces() -> set[str]:
    """Everything on this host that belongs to the lab."""
    links = json.loads(subprocess.run(["ip", "-json", "link"], capture_output=True, check=True).stdout)
    found = {
        name
        for link in links
        for name in (link["ifname"], *link.get("altnames", ()))
        if name.startswith((f"sr-{NAME}", f"{NAME}."))
    }
    found |= {" ".join(one.argv) for one in process.every() if f"{NAME}.{NODE}" in one.argv}
    for folder in ("/var/lib/splitrail/lab", "/run/splitrail"):
        found |= {str(path) for path in Path(folder).glob(f"{NAME}*")}
    rules = subprocess.run(["nft", "list", "ruleset"], capture_output=True, text=True, check=True).stdout
    return found | {line for line in rules.splitlines() if NAME in line}


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    """A lab that is gone before and after the test."""
    bench = Bench(tmp_path)
    bench.lab("down")
    yield bench
    bench.lab("down")


def test_life(bench: Bench) -> None:
    assert not traces()
    bench.lab("up")
    status = json.loads(bench.lab("status", "--json"))
    assert [(node["name"], node["state"]) for node in status] == [(NODE, "up")]

    # Found by its place on the PCI bus whatever its name, with an RDMA device, in the MTU of a fabric.
    rails = "for n in 1 2; do basename /sys/bus/pci/devices/0000:0$n:00.0/virtio*/net/*; done"
    first, second = bench.on(rails).split()
    assert bench.on(DEVICES).split() == [first, second]
    assert bench.on(f"cat /sys/class/net/{first}/mtu") == "9000"
    bench.on(f"sudo ip link set {first} up && sudo ip address add 10.88.252.1/24 dev {first}")
    gids = "grep -l 'RoCE v2' /sys/class/infiniband/rxe0/ports/1/gid_attrs/types/* | xargs -n 1 basename"
    mapped = "0000:0000:0000:0000:0000:ffff:0a58:fc01"
    bench.until(
        f"for i in $({gids}); do cat /sys/class/infiniband/rxe0/ports/1/gids/$i; done | grep -c {mapped}", "1"
    )
    assert "4096" in bench.on("ibv_devinfo -d rxe0 | grep active_mtu")

    # A snapshot taken before a reboot, restored after it: the boot is the old one, the time is today's.
    boot = bench.on(BOOT)
    bench.lab("snapshot", "save", "before")
    assert "before" in bench.lab("snapshot", "list")
    bench.on(f"printf '{LINK}' | sudo tee /etc/systemd/network/20-rail0.link && touch kept && sudo sync")
    # Delayed, so that SSH has its answer before the node is gone.
    bench.on("sudo systemd-run --quiet --on-active=0.5 --timer-property=AccuracySec=50ms reboot -ff")
    bench.await_other_boot(boot)
    bench.lab("up")
    assert bench.on(f"ls kept; {DEVICES}").split() == ["kept", "rail0", second]

    # The guest loses its carrier with the cable, also when it had no power meanwhile.
    carrier = f"sudo ip link set {second} up; cat /sys/class/net/{second}/carrier"
    bench.until(carrier, "1")
    assert "rail 9" in bench.lab("link", NODE, "9", "down", code=2)
    bench.lab("link", NODE, "1", "down")
    bench.until(carrier, "0")
    assert "DOWN" in bench.on("rdma link show rxe1/1")
    bench.lab("link", NODE, "1", "rate", "10")
    assert "down, 10 Mbit/s" in bench.lab("link")
    bench.lab("link", NODE, "all", "heal")
    bench.until(carrier, "1")
    bench.lab("link", NODE, "0", "loss", "5")

    began = time.monotonic()
    bench.lab("snapshot", "restore", "before")
    assert time.monotonic() - began < 60
    assert bench.on(BOOT) == boot
    assert bench.on("ls kept 2>/dev/null; true") == ""
    assert abs(int(bench.on("date +%s")) - time.time()) < 5
    assert "no snapshot `after`; it has before" in bench.lab("snapshot", "restore", "after", code=2)

    bench.lab("power", "off", NODE)
    assert "off" in bench.lab("status", code=1)
    assert "is off" in bench.lab("snapshot", "save", "other", code=2)
    bench.lab("down")
    assert not traces()
