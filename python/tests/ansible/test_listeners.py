"""Where a unit listens, read as the kernel shows it, and what of that nobody declared."""

from __future__ import annotations

import os
import socket
from pathlib import Path

import pytest
import yaml

from splitrail.ansible.modules.splitrail_listeners import decode, findings, held, listening, sockets

ROOT = Path(__file__).parents[3]
UNIT = "ray.service"
HEADER = "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode\n"
# An address of 10.87.0.11 on a machine of little-endian words; state 0A listens, 01 is a connection.
ROWS = {
    "own": ("0B00570A:2051", "0A", 101),
    "loopback": ("0100007F:1F40", "0A", 102),
    "everywhere": ("00000000:18EB", "0A", 103),
    "connection": ("00000000:9999", "01", 104),
    "of_another": ("00000000:0016", "0A", 105),
}


@pytest.fixture
def proc(tmp_path: Path) -> Path:
    """A unit with a shell (10), a container that is a grandchild in its own cgroup (12), and sshd (20)."""
    (tmp_path / "net").mkdir()
    lines = [
        f"   0: {place} 00000000:0000 {state} 00000000:00000000 00:00000000 00000000  0  0 {inode} 1\n"
        for place, state, inode in ROWS.values()
    ]
    (tmp_path / "net/tcp").write_text(HEADER + "".join(lines))
    processes = {
        10: (1, f"0::/system.slice/{UNIT}", [], "podman run"),
        11: (10, f"0::/system.slice/{UNIT}", [101], "raylet (x) y"),
        12: (11, "0::/machine.slice/libpod-1.scope", [102, 103, 104], "gcs_server --port"),
        20: (1, "0::/system.slice/ssh.service", [105], "sshd"),
    }
    for pid, (parent, cgroup, inodes, name) in processes.items():
        folder = tmp_path / str(pid)
        (folder / "fd").mkdir(parents=True)
        (folder / "cgroup").write_text(f"{cgroup}\n")
        (folder / "stat").write_text(f"{pid} ({name}) S {parent} {pid} {pid} 0 -1\n")
        (folder / "cmdline").write_text(name.replace(" ", "\0"))
        for number, inode in enumerate(inodes):
            (folder / "fd" / str(number)).symlink_to(f"socket:[{inode}]")
    return tmp_path


def check(proc: Path, addresses: list[str], *everywhere: str) -> tuple[bool, str]:
    """Whether the finding is ok, and what it measured."""
    found = held(proc, UNIT)
    (made,) = findings("x.listeners", UNIT, found, addresses, everywhere=list(everywhere), hint="Do.")
    return made["ok"], made["measured"]


def test_what_listens_everywhere_is_found_and_a_connection_is_not(proc: Path) -> None:
    assert check(proc, ["10.87.0.11"]) == (False, "0.0.0.0:6379 (gcs_server)")


def test_an_address_that_is_not_declared_is_found(proc: Path) -> None:
    assert check(proc, ["10.87.0.12"], "gcs_server") == (False, "10.87.0.11:8273 (raylet)")


def test_declared_addresses_and_the_loopback_pass(proc: Path) -> None:
    assert check(proc, ["10.87.0.11"], "gcs_server") == (True, "3 sockets, all there")


def test_an_excuse_is_of_the_command_it_names(proc: Path) -> None:
    assert not check(proc, ["10.87.0.11"], "raylet")[0]


def test_a_unit_that_listens_nowhere_was_not_looked_at(proc: Path) -> None:
    (made,) = findings(
        "x.listeners", "other.service", held(proc, "other.service"), [], everywhere=[], hint="Do."
    )
    assert not made["ok"]
    assert "could not be checked" in made["measured"]


@pytest.mark.parametrize(
    ("place", "address"),
    [
        ("0100007F:0050", ("127.0.0.1", 80)),
        ("00000000000000000000000000000000:0050", ("::", 80)),
        ("00000000000000000000000001000000:0050", ("::1", 80)),
        ("0000000000000000FFFF00000B00570A:0050", ("10.87.0.11", 80)),
    ],
)
def test_addresses_are_read_as_the_kernel_writes_them(place: str, address: tuple[str, int]) -> None:
    assert decode(place) == address


def test_a_socket_of_this_very_process_is_found() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        found = listening(Path("/proc"))
        held_here = [found[inode] for inode in sockets(Path("/proc"), os.getpid()) & found.keys()]
        assert ("127.0.0.1", server.getsockname()[1]) in held_here


def test_a_container_with_a_cgroup_of_its_own_is_of_the_unit(proc: Path) -> None:
    (proc / "12/stat").write_text("12 (gcs_server) S 1 12 12 0 -1\n")  # its parent is init, by way of conmon
    assert ("0.0.0.0", 6379) not in held(proc, UNIT)  # noqa: S104  the address as it is shown
    assert ("0.0.0.0", 6379) in held(proc, UNIT, {12})  # noqa: S104  as above


@pytest.mark.parametrize(
    ("command", "excused"),
    [
        # As they stood on the lab's head and on a node with engines.
        ("/opt/venv/lib/python3.11/site-packages/ray/core/src/ray/gcs/gcs_server --log_dir=/tmp/ray", True),
        ("ray-dashboard-ServeHead-0 (/opt/venv/bin/python3 -c from multiprocessing.forkserver)", True),
        ("ray::IDLE", True),
        ("ray::ServeReplica:llm-a:OpenAiIngress", True),
        ("VLLM::EngineCore", True),
        ("/usr/bin/python3 -m http.server 8000", False),
        ("/usr/bin/ray-dashboard-of-somebody", False),
    ],
)
def test_the_role_excuses_what_ray_cannot_be_told_and_nothing_else(command: str, *, excused: bool) -> None:
    role = yaml.safe_load((ROOT / "roles/ray_cluster/vars/main.yml").read_text())
    (made,) = findings(
        "x.listeners",
        UNIT,
        {("::", 18307): command},
        ["10.87.0.11"],
        everywhere=role["__ray_cluster_everywhere"],
        hint="Do.",
    )
    assert made["ok"] is excused
