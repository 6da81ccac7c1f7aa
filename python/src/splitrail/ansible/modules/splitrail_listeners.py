#!/usr/bin/python
"""Find where a unit's processes listen, and say which of these addresses nobody declared."""

from __future__ import annotations

import ipaddress
import re
import subprocess
from collections.abc import Set
from pathlib import Path
from typing import Any

from ansible.module_utils.basic import AnsibleModule
from ansible.module_utils.splitrail_checks import check, unmade

DOCUMENTATION = r"""
module: splitrail_listeners
short_description: Find where a unit's processes listen
description:
  - Looks at every TCP socket that listens and is held by a process of the unit, or of a container that it
    runs, and reports those that are bound to an address that is neither declared nor of the loopback.
  - Changes nothing, in check mode or not.
options:
  name:
    description: Name of the findings, such as C(cluster.listeners).
    type: str
    required: true
  unit:
    description: The systemd unit.
    type: str
    required: true
  container:
    description: Name of the container that the unit runs, if it runs one.
    type: str
    default: ""
  engine:
    description: What runs it.
    type: str
    default: podman
  addresses:
    description: Declared addresses of this node.
    type: list
    elements: str
    required: true
  everywhere:
    description: >-
      Regular expressions of commands that listen on all addresses and cannot be told otherwise. What keeps
      strangers out there is something else, which O(hint) should say.
    type: list
    elements: str
    default: []
  hint:
    description: The cure.
    type: str
    required: true
author: The splitrail authors
"""

RETURN = r"""
checks:
  description: The findings, for M(splitrail_verdict).
  returned: always
  type: list
  elements: dict
listeners:
  description: All that listen, as ADDRESS:PORT (COMMAND).
  returned: always
  type: list
  elements: str
"""

Check = dict[str, Any]
LISTEN = "0A"  # the kernel's number of the state
_SOCKET = re.compile(r"socket:\[(\d+)\]")


def decode(place: str) -> tuple[str, int]:
    """Address and port of a line of /proc/net/tcp or tcp6: 32-bit words in the machine's byte order."""
    digits, _, port = place.partition(":")
    words = [bytes.fromhex(digits[at : at + 8])[::-1] for at in range(0, len(digits), 8)]
    address = ipaddress.ip_address(b"".join(words))
    mapped = getattr(address, "ipv4_mapped", None)
    return str(mapped or address), int(port, 16)


def listening(proc: Path) -> dict[str, tuple[str, int]]:
    """Address and port of each socket that listens, by inode. Raises OSError."""
    found = {}
    for name in ("tcp", "tcp6"):
        table = proc / "net" / name
        for line in table.read_text(encoding="ascii").splitlines()[1:] if table.exists() else []:
            fields = line.split()
            if fields[3] == LISTEN:
                found[fields[9]] = decode(fields[1])
    return found


def members(proc: Path, unit: str, also: Set[int]) -> set[int]:
    """Processes of a unit, others that belong to it, and all that descend from either."""
    parents, of_unit = {}, set(also)
    for folder in proc.iterdir():
        if not folder.name.isdecimal():
            continue
        try:
            cgroup = (folder / "cgroup").read_text(encoding="utf-8")
            stat = (folder / "stat").read_text(encoding="utf-8", errors="replace")
        except OSError:
            continue  # it ended just now
        pid = int(folder.name)
        parents[pid] = int(stat.rpartition(")")[2].split()[1])
        if any(f"/{unit}" in line for line in cgroup.splitlines()):
            of_unit.add(pid)
    grew = True
    while grew:
        more = {pid for pid, parent in parents.items() if parent in of_unit} - of_unit
        of_unit |= more
        grew = bool(more)
    return of_unit


def sockets(proc: Path, pid: int) -> set[str]:
    """Inodes of the sockets that a process holds."""
    found = set()
    try:
        for entry in (proc / str(pid) / "fd").iterdir():
            try:
                matched = _SOCKET.fullmatch(str(entry.readlink()))
            except OSError:
                continue
            if matched:
                found.add(matched.group(1))
    except OSError:
        return set()
    return found


def command(proc: Path, pid: int) -> str:
    """What a process calls itself."""
    try:
        line = (
            (proc / str(pid) / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace").strip()
        )
        return line or (proc / str(pid) / "comm").read_text(encoding="utf-8").strip()
    except OSError:
        return "?"


def first_process(engine: str, container: str) -> set[int]:
    """The first process of a container: with cgroups of its own it descends from nobody in the unit."""
    asked = subprocess.run(
        [engine, "inspect", "--format", "{{.State.Pid}}", container],
        capture_output=True,
        text=True,
        check=False,
    )
    said = asked.stdout.strip()
    return {int(said)} if asked.returncode == 0 and said.isdecimal() and int(said) else set()


def held(proc: Path, unit: str, also: Set[int] = frozenset()) -> dict[tuple[str, int], str]:
    """The command behind each address and port on which the unit listens. Raises OSError."""
    by_inode = listening(proc)
    found: dict[tuple[str, int], str] = {}
    for pid in sorted(members(proc, unit, also)):
        for inode in sockets(proc, pid) & by_inode.keys():
            found.setdefault(by_inode[inode], command(proc, pid))
    return found


def findings(
    name: str,
    unit: str,
    listeners: dict[tuple[str, int], str],
    addresses: list[str],
    *,
    everywhere: list[str],
    hint: str,
) -> list[Check]:
    """One finding for the unit; a unit that listens nowhere was not looked at."""
    required = "the loopback and " + ", ".join(sorted(set(addresses)))
    if not listeners:
        return [unmade(name, unit, "none of its processes listens", required, hint=hint)]
    allowed = {ipaddress.ip_address(address) for address in addresses}
    strange = []
    for (address, port), what in sorted(listeners.items()):
        at = ipaddress.ip_address(address)
        excused = at.is_unspecified and any(re.search(each, what) for each in everywhere)
        if not (at.is_loopback or at in allowed or excused):
            strange.append(f"{address}:{port} ({what.split()[0].rpartition('/')[2]})")
    measured = ", ".join(strange) or f"{len(listeners)} sockets, all there"
    return [check(name, unit, not strange, measured, required, hint=hint)]


def main() -> None:
    """Look."""
    module = AnsibleModule(
        argument_spec={
            "name": {"type": "str", "required": True},
            "unit": {"type": "str", "required": True},
            "container": {"type": "str", "default": ""},
            "engine": {"type": "str", "default": "podman"},
            "addresses": {"type": "list", "elements": "str", "required": True},
            "everywhere": {"type": "list", "elements": "str", "default": []},
            "hint": {"type": "str", "required": True},
        },
        supports_check_mode=True,
    )
    want = module.params
    try:
        inside = first_process(want["engine"], want["container"]) if want["container"] else set()
        found = held(Path("/proc"), want["unit"], inside)
        checks = findings(
            want["name"],
            want["unit"],
            found,
            want["addresses"],
            everywhere=want["everywhere"],
            hint=want["hint"],
        )
    except (OSError, ValueError) as error:
        module.fail_json(msg=f"{want['unit']}: where it listens cannot be found out: {error}")
    shown = [f"{address}:{port} ({what})" for (address, port), what in sorted(found.items())]
    module.exit_json(changed=False, checks=checks, listeners=shown)


if __name__ == "__main__":
    main()
