"""What benchmarks/fleet_speed.py reckons and writes; its runs need root and minutes."""

from __future__ import annotations

import subprocess
import sys
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest

from splitrail.inventory.check import check
from splitrail.project import Project

ROOT = Path(__file__).parents[2]
sys.path.append(str(ROOT / "python/benchmarks"))
fleet_speed = import_module("fleet_speed")


def figures(hosts: int, cpu_s: float) -> Any:
    counts = {"code": 0, "wall_s": 1, "tasks": 10 * hosts, "changed": 0, "peak_mib": 1}
    return fleet_speed.Figures(way="suite", run="first", hosts=hosts, cpu_s=cpu_s, **counts)


@pytest.mark.parametrize(("power", "wanted"), [(1, 1.0), (2, 2.0), (0, 0.0)])
def test_growth_is_the_power_of_the_number_of_hosts(power: int, wanted: float) -> None:
    runs = [figures(hosts, 3.0 * hosts**power) for hosts in (10, 100, 500)]
    assert fleet_speed.exponent(runs, "first") == pytest.approx(wanted)
    assert fleet_speed.exponent(runs[:1], "first") is None
    assert fleet_speed.exponent(runs, "again") is None


def test_cpu_is_told_by_task_and_host() -> None:
    assert figures(10, 6.0).cpu_ms == 60.0


def test_addresses_are_of_the_loopback_and_each_is_one_hosts() -> None:
    found = {fleet_speed.address(number) for number in range(1000)}
    assert len(found) == 1000
    assert all(address.startswith("127.1.") for address in found)


def test_the_inventories_that_it_writes_pass_the_check(tmp_path: Path) -> None:
    assert len(check(Project(ROOT), str(fleet_speed.inventory(tmp_path, 30))).hosts) == 30


def test_the_plain_playbook_is_one(tmp_path: Path) -> None:
    path = fleet_speed.plain_playbook(tmp_path)
    done = subprocess.run(
        ["ansible-playbook", "--syntax-check", "-i", "localhost,", str(path)],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
        cwd=tmp_path,
    )
    assert done.returncode == 0, done.stderr
