"""What VM nodes share with this host, and what only they can do."""

from __future__ import annotations

import io
import time
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from splitrail.lab.container import Containers
from splitrail.lab.report import Reporter
from splitrail.lab.run import LabError
from splitrail.lab.spec import parse
from splitrail.lab.state import State
from splitrail.lab.vm import VirtualMachines, unit_command


def test_containers_refuse_cables_and_snapshots(listing: dict[str, Any], tmp_path: Path) -> None:
    lab = parse(Path("/srv/try/hosts.yml"), listing)
    kind = Containers(lab, State("try", tmp_path), Reporter(Console(file=io.StringIO())))
    node = lab.nodes[0]
    for call in (
        lambda: kind.link(node, 0, "down", None),
        lambda: kind.snapshots(node),
        lambda: kind.save(node, "a"),
        lambda: kind.restore(node, "a"),
    ):
        with pytest.raises(LabError, match=r"n1 is a container, which has neither rails nor snapshots.*`vm`"):
            call()


def test_what_is_not_there_is_named(listing: dict[str, Any], tmp_path: Path) -> None:
    for host in listing["_meta"]["hostvars"].values():
        del host["lab_mounts"]
        host.update(lab_kind="vm", lab_rails=2)
    lab = parse(Path("/srv/try/hosts.yml"), listing)
    kind = VirtualMachines(lab, State("try", tmp_path), Reporter(Console(file=io.StringIO())))
    node = lab.nodes[0]
    assert kind.link(node, None, "show", None) == {0: "healthy", 1: "healthy"}
    with pytest.raises(LabError, match="n1: no rail 2; lab_rails is 2, so they are numbered from 0"):
        kind.link(node, 2, "down", None)
    with pytest.raises(LabError, match="n1 is not installed; run `splitrail lab up n1`"):
        kind.link(node, 1, "down", None)
    assert not tmp_path.joinpath("try").exists()
    assert kind.snapshots(node) == []
    with pytest.raises(LabError, match="n1: no snapshot `clean`; it has none"):
        kind.restore(node, "clean")
    with pytest.raises(LabError, match="n1 is off, and a snapshot is of a running node"):
        kind.save(node, "clean")


def test_a_qemu_that_leaves_is_told_in_its_own_words(listing: dict[str, Any], tmp_path: Path) -> None:
    for host in listing["_meta"]["hostvars"].values():
        del host["lab_mounts"]
        host["lab_kind"] = "vm"
    lab = parse(Path("/srv/try/hosts.yml"), listing)
    kind = VirtualMachines(lab, State("try", tmp_path), Reporter(Console(file=io.StringIO())))
    (tmp_path / "try/n1").mkdir(parents=True)
    (tmp_path / "try/n1/qemu.log").write_text("qemu-system-x86_64: Snapshot 'a' does not exist\n")
    began = time.monotonic()
    with pytest.raises(LabError, match=r"n1: QEMU did not start: .*Snapshot 'a' does not exist"):
        kind._await("n1")
    assert time.monotonic() - began < 5


def test_where_systemd_runs_the_host_a_node_is_a_unit() -> None:
    argv = unit_command("u.service", ["qemu", "-name", "a"], Path("/log"))
    assert argv[:2] == ["systemd-run", "--unit=u.service"]
    assert argv[-3:] == ["qemu", "-name", "a"]
    assert "--property=StandardError=append:/log" in argv
