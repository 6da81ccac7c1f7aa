"""Every check of splitrail_preflight, passing and failing, on a node made of files."""

from __future__ import annotations

import os
import resource
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from splitrail.ansible.modules import splitrail_preflight as preflight
from splitrail.ansible.modules.splitrail_preflight import Node, Wanted, examine

NOW = 1_800_000_000.0
TCP_HEAD = (
    "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode\n"
)


def names(address: dict[str, list[str]]) -> Any:
    def resolve(name: str) -> list[str]:
        try:
            return address[name]
        except KeyError:
            raise OSError(-2, "Name or service not known") from None

    return resolve


def put(root: Path, path: str, text: str) -> None:
    (root / path).parent.mkdir(parents=True, exist_ok=True)
    (root / path).write_text(text, encoding="utf-8")


def listen(root: Path, port: int, inode: int, *, table: str = "tcp", state: str = "0A") -> None:
    queues = "00000000:00000000 00:00000000 00000000"
    line = f"   0: 00000000:{port:04X} 00000000:0000 {state} {queues} 0 0 {inode} 1\n"
    file = root / "proc/net" / table
    put(root, f"proc/net/{table}", (file.read_text() if file.exists() else TCP_HEAD) + line)


def process(root: Path, pid: int, inode: int, comm: str, cgroup: str) -> None:
    put(root, f"proc/{pid}/comm", comm + "\n")
    put(root, f"proc/{pid}/cgroup", f"0::{cgroup}\n")
    (root / f"proc/{pid}/fd").mkdir(parents=True)
    (root / f"proc/{pid}/fd/3").symlink_to(f"socket:[{inode}]")


@pytest.fixture
def root(tmp_path: Path) -> Path:
    put(tmp_path, "etc/os-release", 'NAME="Debian GNU/Linux"\nID=debian\nVERSION_ID="12"\n')
    put(tmp_path, "etc/machine-id", "4b39a97abee54f619e9bd49be51b29ff\n")
    put(tmp_path, "proc/sys/kernel/osrelease", "6.1.0-28-amd64\n")
    put(tmp_path, "proc/meminfo", "MemTotal:       16777216 kB\nMemFree: 1 kB\n")
    put(tmp_path, "proc/net/tcp", TCP_HEAD)
    put(tmp_path, "sys/fs/cgroup/cgroup.controllers", "cpu memory\n")
    (tmp_path / "dev/shm").mkdir(parents=True)
    return tmp_path


@pytest.fixture
def node(root: Path) -> Node:
    return Node(
        root=root,
        machine="x86_64",
        python="3.11.2",
        hostname="n1",
        now=lambda: NOW,
        synchronised=lambda: True,
        resolve=names({"n1": ["10.0.0.1"], "n2": ["10.0.0.2"]}),
        is_own=lambda address: address == "10.0.0.1",
        obtainable=lambda _limit, wanted: wanted,
    )


@pytest.fixture
def want() -> Wanted:
    return {
        "os": {"debian": ["12"], "ubuntu": ["22.04", "24.04"]},
        "kernel_min": "5.15",
        "architectures": ["x86_64"],
        "python_min": "3.10",
        "memory_gib": 16.0,
        "disk": [{"path": "/var/lib/none/yet", "free_gib": 0.0}],
        "controller_time": NOW - 0.5,
        "clock_skew_s": 5.0,
        "clock_sync": True,
        "ports": [{"port": 6379, "units": ["splitrail-ray-*.service"]}],
        "peers": ["n1", "n2"],
        "cgroup_version": 2,
        "shm_gib": 0.0,
        "nofile": 65536,
        "memlock_mib": -1,
    }


def failed(node: Node, want: Wanted) -> dict[str, Any]:
    """What did not pass: the measured value by check name."""
    return {made["name"]: made["measured"] for made in examine(node, want) if not made["ok"]}


def test_a_fit_node_passes_every_check(node: Node, want: Wanted) -> None:
    made = examine(node, want)
    assert {check["name"].removeprefix("preflight.") for check in made if check["ok"]} == {
        *("os", "kernel", "architecture", "python", "memory", "disk", "shm", "clock_skew", "clock_sync"),
        *("port", "own_name", "peer_names", "machine_id", "cgroup", "nofile", "memlock"),
    }
    assert all(check["ok"] and check["hint"] for check in made)


@pytest.mark.parametrize(
    ("path", "text", "finding"),
    [
        ("etc/os-release", "ID=debian\nVERSION_ID=11\n", {"preflight.os": "debian 11"}),
        ("etc/os-release", "ID=arch\n", {"preflight.os": "arch "}),
        ("proc/sys/kernel/osrelease", "5.4.0-1-generic\n", {"preflight.kernel": "5.4.0-1-generic"}),
        ("proc/meminfo", "MemTotal: 8388608 kB\n", {"preflight.memory": 8.0}),
        ("etc/machine-id", "\n", {"preflight.machine_id": "none"}),
        ("etc/machine-id", "uninitialized\n", {"preflight.machine_id": "uninitialized"}),
    ],
)
def test_a_file_that_says_otherwise(
    node: Node, want: Wanted, path: str, text: str, finding: dict[str, Any]
) -> None:
    put(node.root, path, text)
    assert failed(node, want) == finding


@pytest.mark.parametrize(
    ("change", "finding"),
    [
        ({"architectures": ["aarch64"]}, {"preflight.architecture": "x86_64"}),
        ({"python_min": "3.12"}, {"preflight.python": "3.11.2"}),
        ({"cgroup_version": 1}, {"preflight.cgroup": 2}),
        ({"controller_time": NOW + 60}, {"preflight.clock_skew": -60.0}),
        ({"controller_time": NOW - 60}, {"preflight.clock_skew": 60.0}),
    ],
)
def test_other_limits(node: Node, want: Wanted, change: Wanted, finding: dict[str, Any]) -> None:
    assert failed(node, want | change) == finding


def test_kernel_versions_compare_by_number() -> None:
    assert preflight.version("5.15.0-1") > preflight.version("5.4")
    with pytest.raises(ValueError, match="is no version"):
        preflight.version("rolling")


def test_disk_and_shm_too_small_name_the_path(node: Node, want: Wanted) -> None:
    made = examine(node, want | {"disk": [{"path": "/var/lib", "free_gib": 1e9}], "shm_gib": 1e9})
    short = {check["name"]: check["subject"] for check in made if not check["ok"]}
    assert short == {"preflight.disk": "/var/lib", "preflight.shm": "/dev/shm"}


def test_disk_of_a_path_that_is_not_there_yet_is_its_parents(node: Node, want: Wanted) -> None:
    free = os.statvfs(node.root)
    [made] = preflight.check_disk(node, want)
    assert made["measured"] == pytest.approx(free.f_bavail * free.f_frsize / 2**30, abs=1)


def test_clock_that_nothing_disciplines(node: Node, want: Wanted) -> None:
    adrift = replace(node, synchronised=lambda: False)
    assert failed(adrift, want) == {"preflight.clock_sync": "not synchronised"}
    assert failed(adrift, want | {"clock_sync": False}) == {}


def test_port_held_by_a_stranger(node: Node, want: Wanted) -> None:
    listen(node.root, 6379, 77)
    process(node.root, 4242, 77, "redis-server", "/system.slice/redis.service")
    assert failed(node, want) == {"preflight.port": "held by redis-server (redis.service)"}


@pytest.mark.parametrize("table", ["tcp", "tcp6"])
def test_port_held_by_the_suite_passes_again(node: Node, want: Wanted, table: str) -> None:
    listen(node.root, 6379, 77, table=table)
    process(node.root, 4242, 77, "gcs_server", "/system.slice/splitrail-ray-head.service/container")
    assert failed(node, want) == {}


def test_port_shared_with_a_stranger_fails(node: Node, want: Wanted) -> None:
    listen(node.root, 6379, 77)
    listen(node.root, 6379, 78)
    process(node.root, 1, 77, "gcs_server", "/system.slice/splitrail-ray-head.service")
    process(node.root, 2, 78, "nc", "/user.slice/session-1.scope")
    assert "nc (session-1.scope)" in failed(node, want)["preflight.port"]


def test_port_held_by_nobody_that_can_be_seen_fails(node: Node, want: Wanted) -> None:
    listen(node.root, 6379, 77)
    assert failed(node, want) == {"preflight.port": "held by a process that is not visible from here"}


def test_port_only_connected_from_is_free(node: Node, want: Wanted) -> None:
    listen(node.root, 6379, 77, state="01")
    assert failed(node, want) == {}


def test_own_name_leads_nowhere_or_elsewhere(node: Node, want: Wanted) -> None:
    unknown = replace(node, resolve=names({"n2": ["10.0.0.2"]}))
    assert "Name or service not known" in failed(unknown, want | {"peers": []})["preflight.own_name"]
    elsewhere = replace(node, resolve=names({"n1": ["10.0.0.9"]}))
    assert failed(elsewhere, want | {"peers": []}) == {"preflight.own_name": "10.0.0.9"}


@pytest.mark.parametrize(
    ("addresses", "wrong"),
    [
        ({}, "n2: [Errno -2] Name or service not known"),
        ({"n2": ["127.0.1.1"]}, "n2: is a loopback (127.0.1.1)"),
        ({"n2": ["::1"]}, "n2: is a loopback (::1)"),
        ({"n2": ["10.0.0.1"]}, "n2: has the address of n1 (10.0.0.1)"),
    ],
)
def test_peer_names(node: Node, want: Wanted, addresses: dict[str, list[str]], wrong: str) -> None:
    other = replace(node, resolve=names({"n1": ["10.0.0.1"], **addresses}))
    assert failed(other, want) == {"preflight.peer_names": wrong}


def test_cgroup_v1(node: Node, want: Wanted) -> None:
    (node.root / "sys/fs/cgroup/cgroup.controllers").unlink()
    assert failed(node, want) == {"preflight.cgroup": 1}


def test_limits_that_cannot_be_had(node: Node, want: Wanted) -> None:
    held = {resource.RLIMIT_NOFILE: 20000, resource.RLIMIT_MEMLOCK: 8 * 2**20}
    poor = replace(node, obtainable=lambda limit, _wanted: held[limit])
    assert failed(poor, want) == {"preflight.nofile": 20000, "preflight.memlock": 8}
    assert failed(poor, want | {"nofile": -1, "memlock_mib": 8}) == {"preflight.nofile": 20000}


def test_what_cannot_be_read_is_a_finding_and_ends_nothing(node: Node, want: Wanted) -> None:
    for path in ("etc/os-release", "proc/meminfo", "proc/net/tcp", "etc/machine-id"):
        (node.root / path).unlink()

    def refused() -> bool:
        raise PermissionError(1, "Operation not permitted")

    found = failed(replace(node, synchronised=refused), want)
    assert set(found) == {
        *("preflight.os", "preflight.memory", "preflight.port", "preflight.clock_sync"),
        "preflight.machine_id",
    }
    assert str(found["preflight.memory"]).startswith("could not be checked: ")
    assert len(examine(node, want)) == 16


def test_readings_of_this_machine() -> None:
    """The readings that the other tests replace work on a real machine."""
    assert preflight.is_own_address("127.0.0.1")
    assert not preflight.is_own_address("192.0.2.1")  # TEST-NET-1: nobody has it
    assert "127.0.0.1" in preflight.resolve("localhost")
    assert isinstance(preflight.is_clock_synchronised(), bool)
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    assert preflight.obtainable(resource.RLIMIT_NOFILE, 16) == hard
