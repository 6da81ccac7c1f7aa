"""The program that sets at boot what NICs forget: on recorded answers, and over boots on the stand-ins."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from splitrail.lab.standins.sysfs import build

ROOT = Path(__file__).parents[3]
PROGRAM = ROOT / "roles/roce_nic/files/roce_runtime.py"
FIXTURES = Path(__file__).parents[1] / "fixtures/mlx5"
NIC, BRIDGE = "0000:0c:00.0", "0000:00:01.1"
FULL = {
    "trust": "dscp",
    "pfc": [3],
    "ecn": [3],
    "traffic_class": 106,
    "cma_tos": 106,
    "max_read_request": 4096,
    "acs_off": True,
}
TOOLS = ("mlnx_qos", "cma_roce_tos", "setpci")
Run = Callable[..., tuple[int, str]]


@pytest.fixture(scope="module")
def runtime() -> ModuleType:
    spec = importlib.util.spec_from_file_location("roce_runtime", PROGRAM)
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    sys.modules["roce_runtime"] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


class Machine:
    """A server with one NIC and the stand-ins of the tools."""

    def __init__(self, root: Path, runtime: ModuleType, **nic: Any) -> None:
        self.root, self.runtime = root, runtime
        self.tools = set(TOOLS)
        device = {"path": f"pci0000:00/{BRIDGE}/{NIC}", "netdev": "rail0", "rdma": "mlx5_3", **nic}
        build(root / "sys", [device])
        settings = {"sysfs": str(root / "sys"), "state": str(root / "state"), "anyone": True}
        (root / "standins.json").write_text(json.dumps({**settings, "boot_id": str(root / "boot")}))
        (root / "boot").write_text("first\n")
        self.calls: list[tuple[str, ...]] = []
        self.answers: dict[str, tuple[int, str]] = {}

    def run(self, *command: str) -> tuple[int, str]:
        self.calls.append(command)
        if command[0] in self.answers:
            return self.answers[command[0]]
        done = subprocess.run(
            [sys.executable, "-m", f"splitrail.lab.standins.{command[0]}", *command[1:]],
            env={"SPLITRAIL_STANDINS": str(self.root / "standins.json")},
            capture_output=True,
            text=True,
            check=False,
        )
        return done.returncode, done.stdout + done.stderr

    def work(self, settings: dict[str, Any], *, apply: bool, rails: tuple[str, ...] = ("rail0",)) -> Any:
        """The failed checks by name, and how many there are."""
        checks = self.checks(settings, apply=apply, rails=rails)
        return {c["name"].removeprefix("roce_nic."): c for c in checks if not c["ok"]}, len(checks)

    def checks(self, settings: dict[str, Any], *, rails: tuple[str, ...], apply: bool = False) -> Any:
        """All checks."""
        nic = self.runtime.Nic("", self.root / "sys", self.run, lambda tool: tool in self.tools)
        config = {"rails": list(rails), "settings": settings, "wait_s": 0}
        checks = self.runtime.work(config, nic, apply=apply)
        assert all(check["hint"] for check in checks)
        return checks

    def changes(self) -> list[tuple[str, ...]]:
        return [call for call in self.calls if {"--trust", "--pfc", "-t"} & set(call) or "=" in call[-1]]


@pytest.fixture
def machine(tmp_path: Path, runtime: ModuleType) -> Machine:
    return Machine(tmp_path, runtime)


def test_everything_is_set_once_and_lost_by_a_boot(machine: Machine) -> None:
    failed, count = machine.work(FULL, apply=False)
    assert {name: check["measured"] for name, check in failed.items()} == {
        "trust": "pcp",
        "pfc": [],
        "ecn": [],
        "traffic_class": 0,
        "cma_tos": 0,
        "max_read_request": 512,
        "acs": f"on: {BRIDGE}",
    }
    assert count == len(FULL)
    assert machine.changes() == []
    assert machine.work(FULL, apply=True) == ({}, len(FULL))
    before = len(machine.changes())
    assert before == 5
    assert machine.work(FULL, apply=True) == ({}, len(FULL))
    assert len(machine.changes()) == before
    (machine.root / "boot").write_text("second\n")
    assert set(machine.work(FULL, apply=False)[0]) == {"trust", "pfc", "cma_tos", "max_read_request", "acs"}
    assert machine.work(FULL, apply=True)[0] == {}


def test_what_is_not_declared_is_left_alone_and_not_looked_at(machine: Machine) -> None:
    settings = {**dict.fromkeys(FULL, None), "pfc": [3, 5]}
    assert machine.work(settings, apply=True) == ({}, 1)
    assert machine.changes() == [("mlnx_qos", "-i", "rail0", "--pfc", "0,0,0,1,0,1,0,0")]


def test_pfc_on_another_priority_is_taken_away(machine: Machine) -> None:
    machine.run("mlnx_qos", "-i", "rail0", "--pfc", "0,0,0,1,1,0,0,0")
    assert machine.work({"pfc": [3]}, apply=False)[0]["pfc"]["measured"] == [3, 4]
    assert machine.work({"pfc": [3]}, apply=True)[0] == {}


def test_only_the_size_of_reads_is_changed_in_its_register(machine: Machine) -> None:
    machine.work({"max_read_request": 4096}, apply=True)
    assert machine.run("setpci", "-s", NIC, "CAP_EXP+8.w") == (0, "5936\n")


def test_ecn_needs_both_ends(machine: Machine) -> None:
    machine.work({"ecn": [3]}, apply=True)
    (machine.root / "sys/class/net/rail0/ecn/roce_rp/enable/3").write_text("0\n")
    assert machine.work({"ecn": [3]}, apply=False)[0]["ecn"]["measured"] == []


def test_what_the_kernels_own_driver_lacks_is_said(tmp_path: Path, runtime: ModuleType) -> None:
    machine = Machine(tmp_path, runtime, ecn=False, tc=False)
    failed, _ = machine.work({"ecn": [3], "traffic_class": 106, "trust": "dscp"}, apply=True)
    assert set(failed) == {"ecn", "traffic_class"}
    assert failed["ecn"]["measured"].startswith("not supported by this NIC: no ")
    assert failed["ecn"]["hint"].startswith("Set roce_nic_ecn to null")


@pytest.mark.parametrize(
    ("name", "code", "measured"),
    [
        ("no-dcb", 1, "not supported by this NIC: mlnx_qos: ETS features are not supported on your system"),
        ("traceback", 1, "could not be checked: mlnx_qos: ModuleNotFoundError: No module named 'dcbnetlink'"),
        ("fresh", 0, "pcp"),
    ],
)
def test_answers_of_mlnx_qos(machine: Machine, name: str, code: int, measured: str) -> None:
    machine.answers["mlnx_qos"] = (code, (FIXTURES / f"mlnx_qos-{name}.txt").read_text())
    assert machine.work({"trust": "dscp"}, apply=False)[0]["trust"]["measured"] == measured


@pytest.mark.parametrize("name", ["dscp-pfc3", "dscp-pfc3-old", "lldpad"])
def test_good_answers_of_mlnx_qos(machine: Machine, name: str) -> None:
    machine.answers["mlnx_qos"] = (0, (FIXTURES / f"mlnx_qos-{name}.txt").read_text())
    assert machine.work({"trust": "dscp", "pfc": [3]}, apply=False)[0] == {}


def test_garbage_and_silence_are_no_pass(machine: Machine) -> None:
    for code, output in ((0, ""), (0, "\x00\x7fELF"), (-11, "Priority trust state: dscp")):
        machine.answers["mlnx_qos"] = (code, output)
        assert "could not be checked" in machine.work({"trust": "dscp"}, apply=False)[0]["trust"]["measured"]


def test_a_change_that_is_refused_is_told(machine: Machine) -> None:
    answers = {"setpci": (1, "setpci: Cannot open /proc/bus/pci: Permission denied")}
    machine.answers.update(answers)
    failed, _ = machine.work({"max_read_request": 4096, "acs_off": True}, apply=True)
    assert "Permission denied" in failed["max_read_request"]["measured"]
    assert "Permission denied" in failed["max_read_request"]["hint"]
    assert "Permission denied" in failed["acs"]["measured"]


def test_a_setting_that_does_not_stay_is_found(machine: Machine) -> None:
    machine.answers["setpci"] = (0, "2936")
    failed, _ = machine.work({"max_read_request": 4096}, apply=True)
    assert failed["max_read_request"]["measured"] == 512


def dcb(machine: Machine) -> list[tuple[str, ...]]:
    """A machine with iproute2's tool only, which keeps what is set."""
    machine.tools = {"dcb"}
    changes: list[tuple[str, ...]] = []
    answers = {"pfc": "prio-pfc 0:off 1:off 3:off", "app": ""}

    def run(*command: str) -> tuple[int, str]:
        words = [word for word in command[1:] if word != "-N"]
        if words[1] != "show":
            changes.append(command)
            answers[words[0]] = (FIXTURES / f"dcb-{words[0]}.txt").read_text()
        return 0, answers[words[0]]

    machine.run = run  # type: ignore[method-assign]
    return changes


def test_dcb_where_there_is_no_mlnx_qos(machine: Machine) -> None:
    changes = dcb(machine)
    assert machine.work({"trust": "dscp", "pfc": [3]}, apply=True)[0] == {}
    assert changes[0][:6] == ("dcb", "app", "replace", "dev", "rail0", "dscp-prio")
    assert {"0:0", "26:3", "63:7"} < set(changes[0])
    assert changes[1] == ("dcb", "pfc", "set", "dev", "rail0", "prio-pfc", "all:off", "3:on")


def test_dcb_on_a_nic_without_it(machine: Machine) -> None:
    machine.tools = {"dcb"}
    machine.answers["dcb"] = (1, (FIXTURES / "dcb-none.txt").read_text())
    failed, _ = machine.work({"trust": "dscp", "pfc": [3]}, apply=True)
    assert failed["pfc"]["measured"] == (
        "not supported by this NIC: dcb: Attribute read: Operation not supported"
    )


def test_without_any_tool(machine: Machine) -> None:
    machine.tools = set()
    failed, _ = machine.work({"pfc": [3], "max_read_request": 4096, "cma_tos": 106}, apply=True)
    assert "neither mlnx_qos (mlnx-tools) nor dcb (iproute2)" in failed["pfc"]["measured"]
    assert "setpci (pciutils) is not installed" in failed["max_read_request"]["measured"]
    assert "cma_roce_tos is not installed" in failed["cma_tos"]["measured"]


def test_tos_by_configfs_where_the_kernel_has_it(machine: Machine) -> None:
    port = machine.root / "sys/kernel/config/rdma_cm/mlx5_3/ports/1"
    port.mkdir(parents=True)
    (port / "default_roce_tos").write_text("0\n")
    assert machine.work({"cma_tos": 106}, apply=True)[0] == {}
    assert (port / "default_roce_tos").read_text() == "106\n"
    assert machine.calls == []


def test_a_nic_without_rdma_or_pci(machine: Machine) -> None:
    build(machine.root / "sys", [])
    (machine.root / "sys/devices/virtual/net/rail1").mkdir(parents=True)
    link = machine.root / "sys/class/net/rail1"
    link.symlink_to(machine.root / "sys/devices/virtual/net/rail1")
    failed, _ = machine.work({"cma_tos": 106, "max_read_request": 4096}, apply=True, rails=("rail1",))
    assert failed["cma_tos"]["measured"] == "not supported by this NIC: no RDMA device"
    assert failed["max_read_request"]["measured"] == "not supported by this NIC: no PCI device"


def test_a_rail_that_is_not_there(machine: Machine) -> None:
    failed, count = machine.work(FULL, apply=True, rails=("rail9",))
    assert failed["runtime"]["measured"] == "no such interface"
    assert count == 2


def test_bridges_without_acs(machine: Machine) -> None:
    machine.answers["setpci"] = (1, "setpci: 0000:00:01.1: Instance #0 of Extended capability 000d not found")
    assert machine.work({"acs_off": True}, apply=True) == ({}, 1)


@pytest.mark.parametrize(
    ("systemd", "login", "required", "failing"),
    [
        ("infinity", "unlimited", "unlimited", set()),
        ("8388608", "8192", "8192", set()),
        ("8388608", "unlimited", "unlimited", {"services"}),
        ("infinity", "64", "unlimited", {"logins"}),
        ("", "", "unlimited", {"services", "logins"}),
    ],
)
def test_memlock(machine: Machine, systemd: str, login: str, required: str, failing: set[str]) -> None:
    machine.answers.update(systemctl=(0, f"{systemd}\n"), runuser=(0, f"{login}\n"))
    checks = machine.checks({"memlock": required}, rails=())
    assert {check["subject"] for check in checks if not check["ok"]} == failing


def test_a_limit_that_cannot_be_asked_for(machine: Machine) -> None:
    machine.answers.update(systemctl=(1, "Failed to connect to bus"), runuser=(0, "unlimited\n"))
    services, logins = machine.checks({"memlock": "unlimited"}, rails=())
    assert services["measured"] == "could not be checked: Failed to connect to bus"
    assert (services["ok"], logins["ok"]) == (False, True)


def call(tmp_path: Path, config: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    (tmp_path / "roce.json").write_text(config)
    command = [sys.executable, str(PROGRAM), *arguments, "--config", str(tmp_path / "roce.json")]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_the_programs_exit_codes(tmp_path: Path) -> None:
    nothing = json.dumps({"rails": [], "settings": {}})
    done = call(tmp_path, nothing, "check", "--json")
    assert (done.returncode, json.loads(done.stdout)) == (0, {"ok": True, "checks": []})
    done = call(tmp_path, "{spoilt", "apply")
    assert done.returncode == 2
    assert "write it anew with the role roce_nic" in done.stderr
    config = {"rails": ["rail0"], "settings": {"pfc": [3]}, "sysfs": str(tmp_path), "wait_s": 0}
    done = call(tmp_path, json.dumps(config), "apply")
    assert done.returncode == 1
    assert done.stderr.startswith("roce_nic.runtime (rail0): measured no such interface, required present.")
