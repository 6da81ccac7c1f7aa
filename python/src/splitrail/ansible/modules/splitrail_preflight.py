#!/usr/bin/python
"""Check, in one call and without an early stop, whether a node can carry what the suite puts on it."""

from __future__ import annotations

import ctypes
import os
import platform
import re
import resource
import socket
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from ansible.module_utils.basic import AnsibleModule
from ansible.module_utils.splitrail_checks import check, unmade

DOCUMENTATION = r"""
module: splitrail_preflight
short_description: Check whether a node can carry what the suite puts on it
description:
  - Makes every check of the node in one call and reports all findings.
  - Changes nothing, in check mode or not.
  - A check that could not be made is not ok.
options:
  os:
    description: Supported distributions, by their ID in os-release, with the VERSION_IDs supported of each.
    type: dict
    required: true
  kernel_min:
    description: Lowest kernel version.
    type: str
    required: true
  architectures:
    description: Machine names as C(uname -m) prints them.
    type: list
    elements: str
    required: true
  python_min:
    description: Lowest version of the Python that runs Ansible's modules.
    type: str
    required: true
  memory_gib:
    description: Lowest MemTotal, in GiB. The kernel keeps a few percent of the installed memory for itself.
    type: float
    required: true
  disk:
    description: Free space wanted, per path. Of a path that does not exist its nearest parent is measured.
    type: list
    elements: dict
    required: true
    suboptions:
      path: {type: path, required: true, description: Where the space is wanted.}
      free_gib: {type: float, required: true, description: Lowest free space, in GiB.}
  controller_time:
    description: The controller's clock when the call was made, in seconds since the epoch.
    type: float
    required: true
  clock_skew_s:
    description: Largest difference to O(controller_time), in seconds; the way to the node counts as skew.
    type: float
    required: true
  clock_sync:
    description: Whether the kernel must call its clock synchronised.
    type: bool
    required: true
  ports:
    description: TCP ports that must be free, or held by a process of one of the named units.
    type: list
    elements: dict
    required: true
    suboptions:
      port: {type: int, required: true, description: The port.}
      units: {type: list, elements: str, default: [], description: Units (patterns) that may hold it.}
  peers:
    description: Names that must resolve, each to an address of its own that is not a loopback.
    type: list
    elements: str
    required: true
  cgroup_version:
    description: The cgroup hierarchy that must be mounted.
    type: int
    choices: [1, 2]
    required: true
  shm_gib:
    description: Smallest size of /dev/shm, in GiB.
    type: float
    required: true
  nofile:
    description: Open files that a service must be able to have; -1 for no limit.
    type: int
    required: true
  memlock_mib:
    description: Memory that a service must be able to lock, in MiB; -1 for no limit.
    type: int
    required: true
author: The splitrail authors
"""

RETURN = r"""
checks:
  description: The findings, for M(splitrail_verdict).
  returned: always
  type: list
  elements: dict
machine_id:
  description: The node's machine-id; empty if it has none.
  returned: always
  type: str
"""

GIB = 1024**3
MIB = 1024**2
SHM = "/dev/shm"  # noqa: S108  # its size is read, nothing is written to it
UNLIMITED = resource.RLIM_INFINITY

Check = dict[str, Any]
Wanted = dict[str, Any]


def resolve(name: str) -> list[str]:
    """The addresses of a name, none twice. Raises OSError when it has none."""
    return sorted({str(found[4][0]) for found in socket.getaddrinfo(name, None, type=socket.SOCK_STREAM)})


def is_own_address(address: str) -> bool:
    """Whether the address belongs to this node: only such an address can be bound."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        try:
            probe.bind((address, 0))
        except OSError:
            return False
    return True


def is_clock_synchronised() -> bool:
    """What the kernel says of its clock. Raises OSError when it does not answer.

    ``adjtimex`` with no mode set only reads; it returns 5 (TIME_ERROR) while nothing disciplines the clock.
    The buffer is larger than any ABI's ``struct timex``, of which only the leading zeroed ``modes`` matters.
    """
    state = ctypes.CDLL(None, use_errno=True).adjtimex(ctypes.create_string_buffer(1024))
    if state < 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    return bool(state != 5)  # noqa: PLR2004


def obtainable(limit: int, wanted: int) -> int:
    """The hard limit that a service started by root can have here, up to ``wanted``.

    It is tried out, because root without CAP_SYS_RESOURCE (in a container) cannot raise what it was given.
    """
    soft, hard = resource.getrlimit(limit)
    if _reaches(hard, wanted):
        return hard
    try:
        resource.setrlimit(limit, (soft, wanted))
    except (OSError, ValueError):
        return hard
    return wanted


def _reaches(limit: int, wanted: int) -> bool:
    return limit == UNLIMITED or (wanted != UNLIMITED and limit >= wanted)


@dataclass(frozen=True)
class Node:
    """Where the readings come from; the tests put files and answers of their own in place."""

    root: Path = Path("/")
    machine: str = platform.machine()
    python: str = platform.python_version()
    hostname: str = socket.gethostname()
    now: Callable[[], float] = time.time
    synchronised: Callable[[], bool] = is_clock_synchronised
    resolve: Callable[[str], list[str]] = resolve
    is_own: Callable[[str], bool] = is_own_address
    obtainable: Callable[[int, int], int] = obtainable

    def read(self, path: str) -> str:
        """The text of a file, stripped. Raises OSError."""
        return (self.root / path).read_text(encoding="utf-8").strip()

    @property
    def machine_id(self) -> str:
        """The node's machine-id; empty when it has none."""
        try:
            return self.read("etc/machine-id")
        except OSError:
            return ""


def version(text: str) -> tuple[int, ...]:
    """The leading numbers of a version: ``6.1.0-28-amd64`` is (6, 1, 0). Raises ValueError without any."""
    match = re.match(r"\d+(\.\d+)*", text)
    if match is None:
        raise ValueError(f"{text!r} is no version")
    return tuple(int(part) for part in match.group().split("."))


def check_os(node: Node, want: Wanted) -> list[Check]:
    """The distribution and its release, from os-release."""
    pairs = (line.split("=", 1) for line in node.read("etc/os-release").splitlines() if "=" in line)
    fields = {key: value.strip("\"'") for key, value in pairs}
    name, release = fields.get("ID", ""), fields.get("VERSION_ID", "")
    releases = [str(known) for known in want["os"].get(name, [])]
    supported = "; ".join(f"{known} {', '.join(map(str, of))}" for known, of in want["os"].items())
    hint = "Install a supported release, or add this one to preflight_os once you have tried it."
    return [
        check("preflight.os", "os-release", release in releases, f"{name} {release}", supported, hint=hint)
    ]


def check_kernel(node: Node, want: Wanted) -> list[Check]:
    """The version of the running kernel."""
    running = node.read("proc/sys/kernel/osrelease")
    ok = version(running) >= version(want["kernel_min"])
    hint = "Install a newer kernel of the distribution and reboot."
    return [check("preflight.kernel", "running kernel", ok, running, f">= {want['kernel_min']}", hint=hint)]


def check_architecture(node: Node, want: Wanted) -> list[Check]:
    """The machine type."""
    ok = node.machine in want["architectures"]
    required = ", ".join(want["architectures"])
    hint = "Use a node of a supported architecture: the serving image is built for no other."
    return [check("preflight.architecture", "machine", ok, node.machine, required, hint=hint)]


def check_python(node: Node, want: Wanted) -> list[Check]:
    """The Python that runs this module."""
    ok = version(node.python) >= version(want["python_min"])
    hint = "Install a newer python3, or point ansible_python_interpreter at one."
    return [check("preflight.python", "python3", ok, node.python, f">= {want['python_min']}", hint=hint)]


def check_memory(node: Node, want: Wanted) -> list[Check]:
    """MemTotal."""
    match = re.search(r"^MemTotal:\s+(\d+) kB", node.read("proc/meminfo"), re.MULTILINE)
    if match is None:
        raise ValueError("no MemTotal in /proc/meminfo")
    total = int(match.group(1)) * 1024 / GIB
    hint = "Use a node with more memory, or serve a smaller model and lower preflight_memory_gib."
    return [_at_least("preflight.memory", "MemTotal", total, want["memory_gib"], hint)]


def check_disk(node: Node, want: Wanted) -> list[Check]:
    """Free space per path, as an unprivileged process sees it."""
    made = []
    for place in want["disk"]:
        path = node.root / place["path"].lstrip("/")
        while not path.exists():
            path = path.parent
        stat = os.statvfs(path)
        free = stat.f_bavail * stat.f_frsize / GIB
        hint = f"Free space under {place['path']}, or put a larger file system there."
        made.append(_at_least("preflight.disk", place["path"], free, place["free_gib"], hint))
    return made


def check_shm(node: Node, want: Wanted) -> list[Check]:
    """The size of /dev/shm: Ray's object store falls back to the disk when it is small."""
    path = node.root / SHM.lstrip("/")
    if node.root == Path("/") and not path.is_mount():
        raise ValueError("no file system is mounted there")
    stat = os.statvfs(path)
    hint = "Remount it larger (`mount -o remount,size=...`) and give the size in /etc/fstab."
    size = stat.f_blocks * stat.f_frsize / GIB
    return [_at_least("preflight.shm", SHM, size, want["shm_gib"], hint)]


def _at_least(name: str, subject: str, measured: float, required: float, hint: str) -> Check:
    made: Check = check(
        name, subject, measured >= required, round(measured, 1), required, unit="GiB", hint=hint
    )
    return made


def check_clock_skew(node: Node, want: Wanted) -> list[Check]:
    """The difference to the controller's clock; the time that the call took to get here counts as skew."""
    skew = node.now() - want["controller_time"]
    hint = "Run chrony or systemd-timesyncd on the node and on the controller."
    return [
        check(
            "preflight.clock_skew",
            "against the controller",
            abs(skew) <= want["clock_skew_s"],
            round(skew, 2),
            want["clock_skew_s"],
            unit="s",
            hint=hint,
        )
    ]


def check_clock_sync(node: Node, want: Wanted) -> list[Check]:
    """Whether something disciplines the clock."""
    if not want["clock_sync"]:
        return []
    ok = node.synchronised()
    measured = "synchronised" if ok else "not synchronised"
    hint = "Run chrony or systemd-timesyncd with a time source that the node reaches."
    return [check("preflight.clock_sync", "kernel clock", ok, measured, "synchronised", hint=hint)]


def check_ports(node: Node, want: Wanted) -> list[Check]:
    """Each port is free, or held by a unit that may hold it: that is how a live cluster passes again."""
    listening = _listening(node)
    made = []
    for entry in want["ports"]:
        port, units = entry["port"], entry["units"]
        holders = _holders(node, listening.get(port, set()))
        ok = port not in listening or (bool(holders) and all(_is_of(path, units) for _, path in holders))
        measured = "free" if port not in listening else f"held by {_named(holders)}"
        required = "free" if not units else f"free, or held by {', '.join(units)}"
        hint = f"Stop what listens on port {port}, or give the suite's service another port."
        made.append(check("preflight.port", f"tcp/{port}", ok, measured, required, hint=hint))
    return made


def _listening(node: Node) -> dict[int, set[str]]:
    """The socket inodes that listen, by port. IPv6 may be off; IPv4 must be readable."""
    tables = [node.read("proc/net/tcp")]
    if (node.root / "proc/net/tcp6").exists():
        tables.append(node.read("proc/net/tcp6"))
    ports: dict[int, set[str]] = {}
    for table in tables:
        for line in table.splitlines()[1:]:
            fields = line.split()
            if fields[3] == "0A":  # TCP_LISTEN
                ports.setdefault(int(fields[1].rsplit(":", 1)[1], 16), set()).add(fields[9])
    return ports


def _holders(node: Node, inodes: set[str]) -> list[tuple[str, str]]:
    """The processes that hold these sockets: each one's name and its cgroup path, which names its unit."""
    if not inodes:
        return []
    sockets = {f"socket:[{inode}]" for inode in inodes}
    found = []
    for process in (node.root / "proc").glob("[0-9]*"):
        try:
            if any(str(fd.readlink()) in sockets for fd in _links(process / "fd")):
                name = (process / "comm").read_text().strip()
                found.append((name, (process / "cgroup").read_text().strip().rpartition(":")[2]))
        except OSError:  # the process ended while it was looked at
            continue
    return sorted(found)


def _links(folder: Path) -> Iterable[Path]:
    return (link for link in folder.iterdir() if link.is_symlink())


def _is_of(cgroup: str, units: list[str]) -> bool:
    return any(fnmatch(part, unit) for part in cgroup.split("/") for unit in units)


def _named(holders: list[tuple[str, str]]) -> str:
    """``sshd (ssh.service)``, for each holder."""
    known = (
        f"{name} ({next((part for part in reversed(path.split('/')) if '.' in part), 'no unit')})"
        for name, path in holders
    )
    return ", ".join(known) or "a process that is not visible from here"


def check_own_name(node: Node, want: Wanted) -> list[Check]:  # noqa: ARG001
    """The node's own name leads to the node."""
    hint = f"Give {node.hostname} its address in DNS or /etc/hosts."
    required = "an address of this node"
    try:
        addresses = node.resolve(node.hostname)
    except OSError as why:
        return [check("preflight.own_name", node.hostname, False, str(why), required, hint=hint)]
    ok = any(node.is_own(address) for address in addresses)
    return [check("preflight.own_name", node.hostname, ok, ", ".join(addresses), required, hint=hint)]


def check_peers(node: Node, want: Wanted) -> list[Check]:
    """Every peer's name leads somewhere else than the others'. One finding for all."""
    if not want["peers"]:
        return []
    wrong: list[str] = []
    taken: dict[str, str] = {}
    for peer in want["peers"]:
        try:
            addresses = node.resolve(peer)
        except OSError as why:
            wrong.append(f"{peer}: {why}")
            continue
        if peer != node.hostname and all(a.startswith("127.") or a == "::1" for a in addresses):
            wrong.append(f"{peer}: is a loopback ({', '.join(addresses)})")
        wrong += [f"{peer}: has the address of {taken[a]} ({a})" for a in addresses if a in taken]
        taken.update(dict.fromkeys(addresses, peer))
    return [
        check(
            "preflight.peer_names",
            f"{len(want['peers'])} names",
            not wrong,
            "; ".join(wrong) or "each resolves to its own address",
            "each resolves to its own address",
            hint="Correct these names in DNS or /etc/hosts.",
        )
    ]


def check_machine_id(node: Node, want: Wanted) -> list[Check]:  # noqa: ARG001
    """The node has an identity. That no other host has the same one is for the role to compare."""
    identity = node.machine_id
    ok = re.fullmatch(r"[0-9a-f]{32}", identity) is not None
    hint = "Run `systemd-machine-id-setup`; images must ship an empty /etc/machine-id."
    measured = identity or "none"
    return [check("preflight.machine_id", "/etc/machine-id", ok, measured, "32 hex digits", hint=hint)]


def check_cgroup(node: Node, want: Wanted) -> list[Check]:
    """Which cgroup hierarchy is mounted: only the unified one has cgroup.controllers at its root."""
    mounted = 2 if (node.root / "sys/fs/cgroup/cgroup.controllers").exists() else 1
    wanted = want["cgroup_version"]
    switch = {1: 0, 2: 1}[wanted]
    hint = f"Boot with systemd.unified_cgroup_hierarchy={switch} on the kernel command line."
    return [check("preflight.cgroup", "/sys/fs/cgroup", mounted == wanted, mounted, wanted, hint=hint)]


def check_limits(node: Node, want: Wanted) -> list[Check]:
    """What a service may open and lock."""
    return [
        _limit(node, "nofile", resource.RLIMIT_NOFILE, want["nofile"], scale=1, unit="files"),
        _limit(node, "memlock", resource.RLIMIT_MEMLOCK, want["memlock_mib"], scale=MIB, unit="MiB"),
    ]


def _limit(node: Node, name: str, limit: int, wanted: int, *, scale: int, unit: str) -> Check:
    goal = UNLIMITED if wanted == UNLIMITED else wanted * scale
    got = node.obtainable(limit, goal)
    made: Check = check(
        f"preflight.{name}",
        f"ulimit {name}",
        _reaches(got, goal),
        "unlimited" if got == UNLIMITED else got // scale,
        "unlimited" if goal == UNLIMITED else wanted,
        unit=unit,
        hint=f"Raise the hard limit {name} of the container or of systemd that the node runs under.",
    )
    return made


CHECKS: tuple[tuple[str, Callable[[Node, Wanted], list[Check]]], ...] = (
    ("os", check_os),
    ("kernel", check_kernel),
    ("architecture", check_architecture),
    ("python", check_python),
    ("memory", check_memory),
    ("disk", check_disk),
    ("shm", check_shm),
    ("clock_skew", check_clock_skew),
    ("clock_sync", check_clock_sync),
    ("port", check_ports),
    ("own_name", check_own_name),
    ("peer_names", check_peers),
    ("machine_id", check_machine_id),
    ("cgroup", check_cgroup),
    ("limits", check_limits),
)


def examine(node: Node, want: Wanted) -> list[Check]:
    """All checks of the node, in a fixed order; one that cannot be made is a finding, not an end."""
    made: list[Check] = []
    for name, make in CHECKS:
        try:
            made += make(node, want)
        except (OSError, ValueError) as why:
            hint = "Make this readable to root on the node, then run preflight again."
            made.append(unmade(f"preflight.{name}", name, str(why), "a reading", hint=hint))
    return made


def main() -> None:
    """Examine this node with the arguments that Ansible passed."""
    place = {"path": {"type": "path", "required": True}, "free_gib": {"type": "float", "required": True}}
    port = {
        "port": {"type": "int", "required": True},
        "units": {"type": "list", "elements": "str", "default": []},
    }
    module = AnsibleModule(
        argument_spec={
            "os": {"type": "dict", "required": True},
            "kernel_min": {"type": "str", "required": True},
            "architectures": {"type": "list", "elements": "str", "required": True},
            "python_min": {"type": "str", "required": True},
            "memory_gib": {"type": "float", "required": True},
            "disk": {"type": "list", "elements": "dict", "options": place, "required": True},
            "controller_time": {"type": "float", "required": True},
            "clock_skew_s": {"type": "float", "required": True},
            "clock_sync": {"type": "bool", "required": True},
            "ports": {"type": "list", "elements": "dict", "options": port, "required": True},
            "peers": {"type": "list", "elements": "str", "required": True},
            "cgroup_version": {"type": "int", "choices": [1, 2], "required": True},
            "shm_gib": {"type": "float", "required": True},
            "nofile": {"type": "int", "required": True},
            "memlock_mib": {"type": "int", "required": True},
        },
        supports_check_mode=True,
    )
    node = Node()
    module.exit_json(changed=False, checks=examine(node, module.params), machine_id=node.machine_id)


if __name__ == "__main__":
    main()
