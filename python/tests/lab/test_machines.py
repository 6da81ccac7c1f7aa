"""The whole life of a lab, with real machines: about a minute once the root file system is in the cache."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from splitrail.lab import network, process

pytestmark = [
    pytest.mark.lab,
    pytest.mark.skipif(os.geteuid() != 0, reason="making machines, mounts and bridges needs root"),
    pytest.mark.skipif(not shutil.which("systemd-nspawn"), reason="needs systemd-nspawn (systemd-container)"),
]

NAME = "selftest"
NODES = ("selftest-a", "selftest-b")


class Bench:
    """One lab, driven as a person would."""

    def __init__(self, folder: Path) -> None:
        self.inventory = folder / "inventory"
        self.inventory.mkdir()
        (self.inventory / "hosts.yml").write_text(
            "all:\n  vars:\n"
            f"    lab_name: {NAME}\n    lab_network: 10.88.250.0/24\n    lab_shm_gib: 0.5\n"
            "    lab_mounts: [{source: images, target: /var/lib/shared, writable_on: [head]}]\n"
            "    ansible_user: splitrail\n"
            '    ansible_ssh_private_key_file: "{{ inventory_dir }}/../keys/id_ed25519"\n'
            "  children:\n"
            f"    head: {{hosts: {{{NODES[0]}: {{ansible_host: 10.88.250.11}}}}}}\n"
            f"    workers: {{hosts: {{{NODES[1]}: {{ansible_host: 10.88.250.12}}}}}}\n"
        )

    def lab(self, verb: str, *arguments: str, code: int = 0) -> str:
        """Run `splitrail lab VERB` and return what it printed on standard output."""
        argv = [sys.executable, "-m", "splitrail.lab", verb, "-i", str(self.inventory), *arguments]
        done = subprocess.run(argv, capture_output=True, text=True, timeout=600, check=False)
        assert done.returncode == code, done.stdout + done.stderr
        return done.stdout

    def on(self, node: str, script: str, *, code: int = 0) -> str:
        """Run `script` on a node."""
        return self.lab("ssh", node, "--", script, code=code).strip()

    def states(self, *, code: int) -> dict[str, str]:
        """The state of each node."""
        return {node["name"]: node["state"] for node in json.loads(self.lab("status", "--json", code=code))}


def traces() -> set[str]:
    """Everything on this host that has the lab's name."""
    found = {line for line in Path("/proc/self/mountinfo").read_text().splitlines() if NAME in line}
    found |= {str(path) for path in Path("/sys/class/net").iterdir() if NAME in path.name}
    found |= {
        " ".join(one.argv) for one in process.every() if any(f"--machine={NAME}." in a for a in one.argv)
    }
    for folder in ("/var/lib/splitrail/lab", "/run/splitrail", "/run/systemd/nspawn/propagate"):
        found |= {str(path) for path in Path(folder).glob(f"{NAME}*")}
    found |= {str(path) for path in Path("/sys/fs/cgroup").glob(f"**/splitrail/{NAME}.*")}
    rules = subprocess.run(["nft", "list", "ruleset"], capture_output=True, text=True, check=True).stdout
    return found | {line for line in rules.splitlines() if NAME in line}


def until(condition: Callable[[], bool], seconds: float = 30) -> None:
    """Probe `condition` until it holds, `seconds` at most."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.1)


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    """A lab that is gone before and after the test."""
    bench = Bench(tmp_path)
    bench.lab("down")
    yield bench
    bench.lab("down")


def test_life(bench: Bench) -> None:
    assert not traces()
    forward = Path("/proc/sys/net/ipv4/ip_forward").read_text()
    first, second = NODES

    bench.lab("up")
    assert bench.states(code=0) == {first: "up", second: "up"}
    assert bench.on(first, "hostname; sudo -n id -u; stat -c %a /dev/shm").split() == [first, "0", "1777"]
    assert bench.on(first, "df --output=size -B1M /dev/shm | tail -n 1").strip() == "512"
    assert bench.on(first, f"getent hosts {second}").split() == ["10.88.250.12", second]
    bench.on(first, "sudo touch /var/lib/shared/from-first")
    bench.on(second, "test -e /var/lib/shared/from-first && ! sudo rm /var/lib/shared/from-first 2>/dev/null")
    bench.on(first, "sudo rm /var/lib/shared/from-first")
    ids = {bench.on(node, "cat /etc/machine-id") for node in NODES}
    assert len(ids) == 2

    boots = {node: bench.on(node, "stat -c %Z /proc/1/cmdline; touch ~/kept") for node in NODES}
    bench.lab("up")
    assert {node: bench.on(node, "stat -c %Z /proc/1/cmdline") for node in NODES} == boots

    # A reboot from inside comes back by itself, with network, mounts and /dev/shm.
    init = process.container_init(f"splitrail-{NAME}.{second}")
    assert init
    # Delayed, so that SSH has its answer before the node is gone.
    bench.on(second, "sudo systemd-run --quiet --on-active=0.2 --timer-property=AccuracySec=50ms reboot -ff")
    until(lambda: process.container_init(f"splitrail-{NAME}.{second}") not in (init, None))
    bench.lab("up", second)
    again = process.container_init(f"splitrail-{NAME}.{second}")
    assert again
    assert again != init
    bench.on(second, f"test -d /var/lib/shared && ls ~/kept && ping -c 1 -W 2 {first}")
    assert bench.on(second, "df --output=size -B1M /dev/shm | tail -n 1").strip() == "512"

    # All that can be taken away at once: nspawn of one node, and of both the bridge and the way out.
    for one in process.with_arguments(f"--machine={NAME}.{second}"):
        handle = os.pidfd_open(one.pids[0])
        signal.pidfd_send_signal(handle, signal.SIGKILL)
        os.close(handle)
    subprocess.run(["ip", "link", "delete", f"sr-{NAME}"], check=True)
    subprocess.run(["nft", "delete", "table", "ip", f"splitrail-lab-{NAME}"], check=True)
    assert bench.states(code=1) == {first: "unreachable", second: "off"}
    bench.lab("up")
    bench.on(second, f"ls ~/kept && ping -c 1 -W 2 {first}")

    bench.lab("power", "off", second)
    assert bench.states(code=1) == {first: "up", second: "off"}
    bench.lab("reset", second)
    assert bench.on(second, "ls -A ~ | grep -c kept", code=1) == "0"

    # An install that was killed is done again, and half a lab goes down as well as a whole one.
    Path(f"/var/lib/splitrail/lab/{NAME}/{second}/installed.json").unlink()
    bench.lab("up")
    Path(f"/var/lib/splitrail/lab/{NAME}/lab.json").unlink()
    subprocess.run(["ip", "link", "delete", f"sr-{NAME}"], check=True)
    bench.lab("down")
    assert not traces()
    assert not (bench.inventory.parent / "keys").exists()
    assert Path("/proc/sys/net/ipv4/ip_forward").read_text() == forward


def test_a_taken_network_is_refused(bench: Bench) -> None:
    subprocess.run(["ip", "link", "add", "sr-selfclash", "type", "bridge"], check=True)
    try:
        subprocess.run(["ip", "address", "add", "10.88.250.77/28", "dev", "sr-selfclash"], check=True)
        subprocess.run(["ip", "link", "set", "sr-selfclash", "up"], check=True)
        bench.lab("up", code=2)
        # The lock is there for the next command; `down` takes it away.
        assert traces() == {f"/run/splitrail/{NAME}.lock"}
    finally:
        subprocess.run(["ip", "link", "delete", "sr-selfclash"], check=True)


def test_the_interface_of_a_dead_machine_goes() -> None:
    """As nspawn leaves it: a shortened name, the long one beside it."""
    subprocess.run(
        ["ip", "link", "add", "vb-detach-XyZ0", "type", "veth", "peer", "name", "vb-detach-peer"], check=True
    )
    subprocess.run(
        ["ip", "link", "property", "add", "dev", "vb-detach-XyZ0", "altname", "vb-detach.a-long-name"],
        check=True,
    )
    network.detach("detach.another-name")
    assert "vb-detach-XyZ0" in network.interfaces()
    network.detach("detach.a-long-name")
    assert "vb-detach-XyZ0" not in network.interfaces()
    network.detach("detach.a-long-name")
