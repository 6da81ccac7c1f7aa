"""Telling processes apart."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

from splitrail.lab import process


def _fake(proc: Path, pids: str, *, argv: str = "", root: str = "/dev/vda", state: str = "S") -> None:
    folder = proc / pids.split(maxsplit=1)[0]
    folder.mkdir(parents=True)
    (folder / "stat").write_text(f"{folder.name} (a b) c) {state} " + " ".join(str(n) for n in range(4, 53)))
    (folder / "status").write_text(f"Name:\tx\nNSpid:\t{pids}\n")
    (folder / "cmdline").write_bytes(argv.replace(" ", "\0").encode() + b"\0" if argv else b"")
    (folder / "mountinfo").write_text(
        f"1 0 0:1 / / rw - overlay {root} rw\n2 1 0:2 / /x rw - overlay other rw\n"
    )


def test_only_this_hosts_processes_with_all_arguments(tmp_path: Path) -> None:
    _fake(tmp_path, "10", argv="nspawn --machine=a.b --directory=/x")
    _fake(tmp_path, "11", argv="nspawn --machine=a.b --directory=/y")
    _fake(tmp_path, "12 5", argv="nspawn --machine=a.b --directory=/x")
    _fake(tmp_path, "13", argv="nspawn --machine=a.b --directory=/x", state="Z")
    _fake(tmp_path, "14")
    found = process.with_arguments("--machine=a.b", "--directory=/x", proc=tmp_path)
    assert [one.pids for one in found] == [(10,)]


def test_a_containers_init_by_its_root(tmp_path: Path) -> None:
    _fake(tmp_path, "20 1", root="lab-a.b")
    _fake(tmp_path, "21 2", root="lab-a.c")
    _fake(tmp_path, "22 3 1", root="lab-a.d")
    _fake(tmp_path, "23", root="lab-a.e")
    found = process.container_init("lab-a.b", tmp_path)
    assert found is not None
    assert found.pids == (20, 1)
    # Not an init; an init in a container in a container; a process of this host; a mount that is no root.
    for source in ("lab-a.c", "lab-a.d", "lab-a.e", "other"):
        assert process.container_init(source, tmp_path) is None


def test_a_reused_pid_is_not_killed() -> None:
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as child:
        now = process.look(child.pid)
        assert now is not None
        earlier = replace(now, started=now.started - 1)
        assert process.kill(earlier, 0)  # the earlier process is gone, which is all that was wanted
        assert child.poll() is None
        assert process.kill(now, 10)
        assert child.wait() == -9
        assert process.look(child.pid) is None
        assert process.kill(now, 0)
