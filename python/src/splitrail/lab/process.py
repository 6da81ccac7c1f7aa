"""Find and kill processes, never one that merely got the same number.

A node's processes are known by what they are (their command line, their root file system), not by a stored
pid: there is no pid file that could go stale. A signal goes through a pidfd, and only after the process
behind it was looked at again.
"""

from __future__ import annotations

import os
import select
import signal
from dataclasses import dataclass
from pathlib import Path

_PROC = Path("/proc")


@dataclass(frozen=True)
class Process:
    """A process, told apart from later ones with the same pid by its start time (clock ticks since boot).

    `pids` holds its pid in this PID namespace, then in each nested one it is in: one number for a process
    of this host, `(n, 1)` for the init of a container.
    """

    pids: tuple[int, ...]
    started: int
    argv: tuple[str, ...]


def look(pid: int, proc: Path = _PROC) -> Process | None:
    """The process `pid`; None when there is none or only a zombie."""
    folder = proc / str(pid)
    try:
        # The name in parentheses may hold spaces and parentheses itself.
        fields = (folder / "stat").read_text().rpartition(")")[2].split()
        status = (folder / "status").read_text()
        argv = (folder / "cmdline").read_bytes().decode(errors="replace").split("\0")[:-1]
    except (FileNotFoundError, ProcessLookupError):
        return None
    if fields[0] in "ZX":
        return None
    pids = next(line.split()[1:] for line in status.splitlines() if line.startswith("NSpid:"))
    return Process(tuple(map(int, pids)), int(fields[19]), tuple(argv))


def every(proc: Path = _PROC) -> list[Process]:
    """All processes."""
    found = (look(int(entry.name), proc) for entry in proc.iterdir() if entry.name.isdigit())
    return [process for process in found if process]


def with_arguments(*arguments: str, proc: Path = _PROC) -> list[Process]:
    """This host's own processes whose command line holds every one of `arguments`.

    A lab inside a node has the same command lines as one outside: hence none of a nested PID namespace.
    """
    return [one for one in every(proc) if len(one.pids) == 1 and set(arguments) <= set(one.argv)]


def container_init(root_source: str, proc: Path = _PROC) -> Process | None:
    """The init of the container whose root is the mount that was made from `root_source`.

    nspawn's own death does not end it, so it has to be found without nspawn. Needs root.
    """
    for one in every(proc):
        if len(one.pids) != 2 or one.pids[1] != 1:  # noqa: PLR2004 (one nested namespace, its first process)
            continue
        try:
            mounts = (proc / str(one.pids[0]) / "mountinfo").read_text().splitlines()
        except (FileNotFoundError, ProcessLookupError, PermissionError, OSError):
            continue
        for line in mounts:
            front, _, back = line.partition(" - ")
            if front.split()[4] == "/" and back.split()[1] == root_source:
                return one
    return None


def kill(process: Process, seconds: float) -> bool:
    """Kill `process` at once and wait up to `seconds`; True when it is gone."""
    try:
        handle = os.pidfd_open(process.pids[0])
    except ProcessLookupError:
        return True
    try:
        if look(process.pids[0]) != process:
            return True
        signal.pidfd_send_signal(handle, signal.SIGKILL)
        return bool(select.select([handle], [], [], seconds)[0])
    except ProcessLookupError:
        return True
    finally:
        os.close(handle)
