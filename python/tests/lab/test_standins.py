"""The stand-ins answer as the real tools do, keep what is set, and lose what a boot loses."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from splitrail.lab import standins
from splitrail.lab.standins.sysfs import build

FIXTURES = Path(__file__).parents[1] / "fixtures/mlx5"
NIC, BRIDGE = "0000:0c:00.0", "0000:00:01.1"
Run = Callable[..., tuple[int, str]]


@pytest.fixture
def run(tmp_path: Path) -> Run:
    build(
        tmp_path / "sys",
        [{"path": f"pci0000:00/{BRIDGE}/{NIC}", "netdev": "rail0", "rdma": "mlx5_0"}],
    )
    settings = {"sysfs": str(tmp_path / "sys"), "state": str(tmp_path / "state"), "anyone": True}
    settings["boot_id"] = str(tmp_path / "boot_id")
    (tmp_path / "standins.json").write_text(json.dumps(settings))
    (tmp_path / "boot_id").write_text("first\n")

    def call(tool: str, *arguments: str) -> tuple[int, str]:
        done = subprocess.run(
            [sys.executable, "-m", f"splitrail.lab.standins.{tool}", *arguments],
            env={"SPLITRAIL_STANDINS": str(tmp_path / "standins.json")},
            capture_output=True,
            text=True,
            check=False,
            stdin=subprocess.DEVNULL,
        )
        return done.returncode, done.stdout + done.stderr

    return call


def layout(line: str) -> list[int]:
    """Where the words of a line begin."""
    return [match.start() for match in re.finditer(r"\S+", line)]


def test_the_query_lies_in_the_real_columns(run: Run) -> None:
    code, text = run("mstconfig", "-d", NIC, "-e", "q")
    assert code == 0
    real = (FIXTURES / "cx7-query.txt").read_text()
    for key in ("LINK_TYPE_P1", "ATS_ENABLED", "ROCE_CC_PRIO_MASK_P1"):
        mine, theirs = (
            next(line for line in answer.splitlines() if key in line).lstrip("*") for answer in (text, real)
        )
        assert len(layout(mine)) == len(layout(theirs)) == 4
        assert layout(f" {mine.strip()}") == layout(f" {theirs.strip()}")


def test_a_value_waits_for_the_boot(run: Run, tmp_path: Path) -> None:
    code, text = run("mstconfig", "-d", NIC, "-y", "set", "ATS_ENABLED=1")
    assert (code, text.splitlines()[-1]) == (0, "-I- Please reboot machine to load new configurations.")
    row = r"^\*\s+ATS_ENABLED\s+False\(0\)\s+False\(0\)\s+True\(1\)\s*$"
    answer = run("mstconfig", "-d", NIC, "-e", "q")[1]
    assert re.search(row, answer, re.MULTILINE)
    assert "The '*' shows parameters" in answer
    (tmp_path / "boot_id").write_text("second\n")
    row = r"^\*\s+ATS_ENABLED\s+False\(0\)\s+True\(1\)\s+True\(1\)\s*$"
    assert re.search(row, run("mstconfig", "-d", NIC, "-e", "q")[1], re.MULTILINE)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("-d", "0000:99:00.0", "-e", "q"), "-E- Failed to open the device"),
        (("-d", NIC, "-y", "set", "FOO=1"), "-E- Unknown Parameter: FOO"),
        (("-d", NIC, "-y", "set", "CNP_DSCP_P2=1"), "-E- The Device doesn't support CNP_DSCP_P2 parameter"),
        (("-d", NIC, "-y", "set", "ATS_ENABLED=1", "MAX_ACC_OUT_READ=44"), "support MAX_ACC_OUT_READ"),
        (("-d", NIC, "-y", "set", "LINK_TYPE_P1=9"), "-E- Unknown value 9"),
        (("-d", NIC, "set", "ATS_ENABLED=1"), "-E- Aborted by user."),
    ],
)
def test_a_refused_set_changes_nothing(run: Run, arguments: tuple[str, ...], said: str) -> None:
    code, text = run("mstconfig", *arguments)
    assert code == 3
    assert said in text
    assert "*  " not in run("mstconfig", "-d", NIC, "-e", "q")[1]


def test_qos_is_lost_by_a_boot(run: Run, tmp_path: Path) -> None:
    assert run("mlnx_qos", "-i", "rail0", "--trust", "dscp", "--pfc", "0,0,0,1,0,0,0,0")[0] == 0
    real = (FIXTURES / "mlnx_qos-dscp-pfc3.txt").read_text()
    text = run("mlnx_qos", "-i", "rail0")[1]
    assert text.partition("tc: 2")[0] == real.partition("tc: 2")[0]
    (tmp_path / "boot_id").write_text("second\n")
    text = run("mlnx_qos", "-i", "rail0")[1]
    assert "trust state: pcp" in text
    assert "enabled     0   0   0   0   0   0   0   0   " in text


def test_qos_of_what_has_none(run: Run) -> None:
    assert run("mlnx_qos", "-i", "lo") == (1, (FIXTURES / "mlnx_qos-no-dcb.txt").read_text())
    assert run("mlnx_qos", "-i", "rail0", "--pfc", "0,0,0,1") == (1, "pfc list must have 8 items\n")


def test_tos_is_lost_by_a_boot(run: Run, tmp_path: Path) -> None:
    assert run("cma_roce_tos", "-d", "mlx5_0", "-t", "106") == (0, "106\n")
    assert run("cma_roce_tos", "-d", "mlx5_0") == (0, "106\n")
    (tmp_path / "boot_id").write_text("second\n")
    assert run("cma_roce_tos", "-d", "mlx5_0") == (0, "0\n")
    assert run("cma_roce_tos", "-d", "mlx5_9")[0] == 1


def test_registers_are_lost_by_a_boot(run: Run, tmp_path: Path) -> None:
    assert run("setpci", "-s", NIC, "CAP_EXP+8.w") == (0, "2936\n")
    assert run("setpci", "-s", NIC, "CAP_EXP+8.w=5000:7000") == (0, "")
    assert run("setpci", "-s", NIC, "CAP_EXP+8.w") == (0, "5936\n")
    assert run("setpci", "-s", BRIDGE, "ECAP_ACS+6.w=0000")[0] == 0
    assert run("setpci", "-s", BRIDGE, "ECAP_ACS+6.w") == (0, "0000\n")
    assert run("setpci", "-s", NIC, "ECAP_ACS+6.w")[0] == 1
    (tmp_path / "boot_id").write_text("second\n")
    assert run("setpci", "-s", BRIDGE, "ECAP_ACS+6.w") == (0, "001d\n")


def test_installed_ones_run_without_the_package(tmp_path: Path) -> None:
    standins.install(tmp_path)
    program = tmp_path / "usr/local/sbin/mstconfig"
    assert program.stat().st_mode & 0o111
    folder = tmp_path / standins.FOLDER
    text = program.read_text().replace(f"/{standins.FOLDER}", str(folder))
    program.write_text(text)
    done = subprocess.run(
        [program, "-v"],
        capture_output=True,
        text=True,
        check=False,
        env={"PATH": os.defpath},
    )
    assert (done.returncode, done.stdout[:9]) == (0, "mstconfig")
