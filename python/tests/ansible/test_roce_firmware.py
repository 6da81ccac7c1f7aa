"""Firmware keys, on answers of the real tools' format, sad ones too; then on the stand-in, over boots."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from splitrail.ansible.modules import splitrail_roce_firmware as module
from splitrail.ansible.modules.splitrail_roce_firmware import Firmware, ToolError, cards_of, complaint, parse
from splitrail.lab.standins.sysfs import build

FIXTURES = Path(__file__).parents[1] / "fixtures/mlx5"
NIC = "0000:0c:00.0"
NICS = [{"name": "rail0", "pci": NIC}]


def recorded(name: str) -> str:
    return (FIXTURES / f"{name}.txt").read_text()


class Tool:
    """Answers a query from a file, and a set as told."""

    def __init__(self, query: str, answer: tuple[int, str] = (0, "set-done"), code: int = 0) -> None:
        self.query, self.answer, self.code = query, answer, code
        self.calls: list[str] = []

    def __call__(self, *command: str) -> tuple[int, str]:
        self.calls.append(" ".join(command[1:]))
        if "set" in command:
            return self.answer[0], recorded(self.answer[1])
        return self.code, recorded(self.query)

    @property
    def sets(self) -> list[str]:
        return [call for call in self.calls if " set " in call]


def outcome(
    tool: Tool, keys: dict[str, int], *, nics: Any = None, optional: tuple[str, ...] = (), memory: Any = None
) -> tuple[dict[str, Any], Firmware]:
    """The failed checks after one applied run, by key."""
    firmware = Firmware("mstconfig", "boot-2", memory or {}, tool)
    failed = {}
    for card in cards_of(nics or NICS):
        firmware.query(card)
        firmware.apply(card, keys, pretend=False)
        for check in firmware.checks(card, keys, frozenset(optional)):
            assert check["hint"]
            if not check["ok"]:
                failed[check["subject"].split()[-1]] = check
    return failed, firmware


def test_a_table_is_read_with_its_three_columns() -> None:
    values = parse(recorded("cx7-query"))
    assert values["CNP_DSCP_P1"] == {"Default": 48, "Current": 48, "Next Boot": 4}
    assert values["LINK_TYPE_P1"] == {"Default": 1, "Current": 2, "Next Boot": 2}
    assert values["EXP_ROM_UEFI_x86_ENABLE"]["Current"] == 1
    assert values["MEMIC_SIZE_LIMIT"]["Current"] == 1
    assert values["ESWITCH_HAIRPIN_DESCRIPTORS"]["Current"] == "Array[0..7]"


def test_the_older_layout_is_read_too() -> None:
    values = parse(recorded("cx5-query-old-layout"))
    assert values["ADVANCED_PCI_SETTINGS"] == {"Default": 0, "Current": 1, "Next Boot": 1}
    assert len(values) == 6


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("open-failed", "Failed to open the device"),
        ("not-root", "Failed to open the device"),
        ("garbage", "no table in its answer, which ends with"),
    ],
)
def test_an_answer_without_a_table_is_told(name: str, said: str) -> None:
    with pytest.raises(ToolError, match=said):
        parse(recorded(name))
    failed, firmware = outcome(Tool(name, code=3), {"ATS_ENABLED": 0})
    assert str(failed["ATS_ENABLED"]["measured"]).startswith(f"could not be checked: {said}")
    assert firmware.asked == []


def test_no_answer_at_all() -> None:
    assert complaint("") == "no answer"


def test_a_tool_that_a_signal_ended_is_not_believed() -> None:
    failed, _ = outcome(Tool("cx7-query", code=-11), {"ATS_ENABLED": 0})
    assert failed["ATS_ENABLED"]["measured"] == "could not be checked: ended by signal 11"


def test_a_tool_that_is_missing() -> None:
    with pytest.raises(ToolError, match="no-such-tool"):
        module.run("no-such-tool", "-d", NIC)


def test_what_is_as_declared_is_left_alone() -> None:
    tool = Tool("cx7-query")
    failed, firmware = outcome(
        tool, {"ATS_ENABLED": 0, "LINK_TYPE_P1": 2, "ADVANCED_PCI_SETTINGS": 1, "MAX_ACC_OUT_READ": 44}
    )
    assert (failed, tool.sets, firmware.asked) == ({}, [], [])
    assert len(tool.calls) == 1


def test_what_the_next_boot_brings_is_pending_and_not_set_again() -> None:
    tool = Tool("cx7-query")
    failed, _ = outcome(tool, {"PCI_WR_ORDERING": 1})
    assert failed["PCI_WR_ORDERING"]["measured"] == "pending: 0, next boot 1"
    assert "Reboot the node" in failed["PCI_WR_ORDERING"]["hint"]
    assert tool.sets == []


def test_what_differs_is_set_in_one_call() -> None:
    tool = Tool("cx7-query")
    _, firmware = outcome(tool, {"ATS_ENABLED": 1, "CNP_802P_PRIO_P1": 5, "LINK_TYPE_P1": 2})
    assert tool.sets == [f"-d {NIC} -y set ATS_ENABLED=1 CNP_802P_PRIO_P1=5"]
    assert firmware.memory == {
        "0000:0c:00": {
            "ATS_ENABLED": {"value": 1, "boot": "boot-2"},
            "CNP_802P_PRIO_P1": {"value": 5, "boot": "boot-2"},
        }
    }


def test_a_check_run_sets_nothing_and_predicts() -> None:
    tool = Tool("cx7-query")
    firmware = Firmware("mstconfig", "boot-2", {}, tool)
    (card,) = cards_of(NICS)
    firmware.query(card)
    assert firmware.apply(card, {"ATS_ENABLED": 1}, pretend=True) is True
    assert firmware.apply(card, {"ATS_ENABLED": 0}, pretend=True) is False
    assert (tool.sets, firmware.memory) == ([], {})


def test_a_value_that_is_set_back_by_hand_is_set_again() -> None:
    """It had taken effect: then a memory of it is dropped."""
    memory = {"0000:0c:00": {"ATS_ENABLED": {"value": 0, "boot": "boot-1"}}}
    _, firmware = outcome(Tool("cx7-query"), {"ATS_ENABLED": 0}, memory=memory)
    assert firmware.memory == {"0000:0c:00": {}}


@pytest.mark.parametrize(
    ("key", "value", "measured"), [("ATS_ENABLED", 1, "0"), ("PCI_WR_ORDERING", 1, "0, next boot 1")]
)
def test_what_did_not_take_at_a_boot_is_not_asked_for_twice(key: str, value: int, measured: str) -> None:
    tool = Tool("cx7-query")
    memory = {"0000:0c:00": {key: {"value": value, "boot": "boot-1"}}}
    failed, _ = outcome(tool, {key: value}, memory=memory)
    assert tool.sets == []
    assert failed[key]["measured"] == f"{measured}: not taken at the last boot"
    assert failed[key]["hint"].startswith("Power the server off and on")


def test_another_value_is_asked_for_after_one_that_did_not_take() -> None:
    tool = Tool("cx7-query")
    outcome(
        tool, {"CNP_DSCP_P1": 46}, memory={"0000:0c:00": {"CNP_DSCP_P1": {"value": 48, "boot": "boot-1"}}}
    )
    assert tool.sets == [f"-d {NIC} -y set CNP_DSCP_P1=46"]


def test_a_key_that_the_card_lacks() -> None:
    tool = Tool("cx5-query-old-layout")
    failed, _ = outcome(tool, {"ATS_ENABLED": 0, "MAX_ACC_OUT_READ": 44}, optional=("MAX_ACC_OUT_READ",))
    assert tool.sets == []
    assert set(failed) == {"ATS_ENABLED"}
    assert failed["ATS_ENABLED"]["measured"] == "the card has no such key"
    assert "roce_nic_firmware_where_present" in failed["ATS_ENABLED"]["hint"]


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        ("set-no-such-key", "The Device doesn't support MAX_ACC_OUT_READ parameter"),
        ("set-failed", "Failed to set configuration: Operation not permitted"),
    ],
)
def test_a_refusal_is_told_in_the_tools_words(answer: str, said: str) -> None:
    failed, firmware = outcome(Tool("cx7-query", answer=(3, answer)), {"ATS_ENABLED": 1})
    assert failed["ATS_ENABLED"]["hint"].startswith(f"The card refused ATS_ENABLED=1: {said}.")
    assert firmware.memory == {}


def test_each_port_in_use_gets_the_keys_of_a_port_and_the_card_is_set_once() -> None:
    tool = Tool("cx6dx-two-ports")
    both = [{"name": f"rail{function}", "pci": f"0000:4b:00.{function}"} for function in (0, 1)]
    failed, _ = outcome(tool, {"CNP_DSCP_P1": 4, "ATS_ENABLED": 1}, nics=both)
    assert tool.sets == ["-d 0000:4b:00.0 -y set ATS_ENABLED=1 CNP_DSCP_P1=4"]
    assert {check["subject"] for check in failed.values()} == {
        "rail0 0000:4b:00.0 CNP_DSCP_P1",
        "rail0 0000:4b:00.0 ATS_ENABLED",
    }


def test_a_port_that_is_no_rail_is_left_alone() -> None:
    tool = Tool("cx6dx-two-ports")
    outcome(tool, {"CNP_DSCP_P1": 48}, nics=[{"name": "rail0", "pci": "0000:4b:00.1"}])
    assert tool.sets == ["-d 0000:4b:00.1 -y set CNP_DSCP_P2=48"]


def test_a_firmware_that_does_not_tell_what_is_in_effect() -> None:
    failed, _ = outcome(Tool("no-default-or-current"), {"LINK_TYPE_P1": 2})
    assert failed["LINK_TYPE_P1"]["measured"] == "unknown, next boot 2"
    assert "does not tell which values are in effect" in failed["LINK_TYPE_P1"]["hint"]


def test_groups_that_could_not_be_read_do_not_hide_the_others() -> None:
    failed, _ = outcome(Tool("some-groups-unreadable", code=3), {"ATS_ENABLED": 0, "CNP_DSCP_P1": 4})
    assert set(failed) == {"CNP_DSCP_P1"}


def test_a_rail_that_is_not_on_pci_fails_and_is_not_asked() -> None:
    nics = [{"name": "rail0", "pci": ""}]
    assert cards_of(nics) == []
    (check,) = module.elsewhere(nics, {"ATS_ENABLED": 0})
    assert (check["ok"], check["measured"]) == (False, "could not be checked: no PCI device")


class Lab:
    """A machine with the stand-in, which can be booted."""

    def __init__(self, root: Path, cards: dict[str, Any]) -> None:
        self.root, self.boots = root, 0
        self.memory: dict[str, Any] = {}
        devices = [{"path": f"pci0000:00/0000:00:01.1/{NIC}", "netdev": "rail0", "rdma": "mlx5_0"}]
        build(root / "sys", devices)
        settings = {"sysfs": str(root / "sys"), "state": str(root / "state"), "boot_id": str(root / "boot")}
        (root / "standins.json").write_text(json.dumps({**settings, "anyone": True, "cards": cards}))
        self.boot()

    def boot(self) -> None:
        self.boots += 1
        (self.root / "boot").write_text(f"boot-{self.boots}\n")

    def run(self, *command: str) -> tuple[int, str]:
        done = subprocess.run(
            [sys.executable, "-m", f"splitrail.lab.standins.{command[0]}", *command[1:]],
            env={"SPLITRAIL_STANDINS": str(self.root / "standins.json")},
            capture_output=True,
            text=True,
            check=False,
        )
        return done.returncode, done.stdout + done.stderr

    def apply(self, keys: dict[str, int]) -> tuple[dict[str, Any], list[str]]:
        firmware = Firmware("mstconfig", f"boot-{self.boots}", self.memory, self.run)
        (card,) = cards_of(NICS)
        firmware.query(card)
        firmware.apply(card, keys, pretend=False)
        checks = firmware.checks(card, keys, frozenset())
        return {c["subject"].split()[-1]: c["measured"] for c in checks if not c["ok"]}, firmware.asked


DECLARED = {"ADVANCED_PCI_SETTINGS": 1, "MAX_ACC_OUT_READ": 44, "PCI_WR_ORDERING": 1, "LINK_TYPE_P1": 2}


def test_over_a_boot_with_a_key_that_only_appears_with_another(tmp_path: Path) -> None:
    lab = Lab(tmp_path, {})
    failed, asked = lab.apply(DECLARED)
    assert asked == [
        "0000:0c:00 ADVANCED_PCI_SETTINGS=1",
        "0000:0c:00 MAX_ACC_OUT_READ=44",
        "0000:0c:00 PCI_WR_ORDERING=1",
    ]
    assert failed == {
        "ADVANCED_PCI_SETTINGS": "pending: 0, next boot 1",
        "MAX_ACC_OUT_READ": "pending: 0, next boot 44",
        "PCI_WR_ORDERING": "pending: 0, next boot 1",
    }
    assert lab.apply(DECLARED) == (failed, [])
    lab.boot()
    assert lab.apply(DECLARED) == ({}, [])
    # What somebody changes later is set again, though it was set before.
    lab.run("mstconfig", "-d", NIC, "-y", "set", "PCI_WR_ORDERING=0")
    assert lab.apply(DECLARED)[1] == ["0000:0c:00 PCI_WR_ORDERING=1"]


def test_over_boots_with_a_value_that_never_takes(tmp_path: Path) -> None:
    lab = Lab(tmp_path, {"all": {"stuck": ["PCI_WR_ORDERING"]}})
    assert lab.apply({"PCI_WR_ORDERING": 1})[1] == ["0000:0c:00 PCI_WR_ORDERING=1"]
    for _ in range(2):
        lab.boot()
        failed = {"PCI_WR_ORDERING": "0, next boot 1: not taken at the last boot"}
        assert lab.apply({"PCI_WR_ORDERING": 1}) == (failed, [])


def test_a_card_without_a_key_and_one_whose_tool_dies(tmp_path: Path) -> None:
    lab = Lab(tmp_path, {"all": {"missing": ["ATS_ENABLED"]}})
    assert lab.apply({"ATS_ENABLED": 0})[0] == {"ATS_ENABLED": "the card has no such key"}
    lab = Lab(tmp_path, {"all": {"broken": "Segmentation fault"}})
    assert "Segmentation fault" in lab.apply({"ATS_ENABLED": 0})[0]["ATS_ENABLED"]


def test_what_was_remembered_is_kept_and_a_spoilt_file_is_no_obstacle(tmp_path: Path) -> None:
    path = tmp_path / "deep/firmware.json"
    memory = {"0000:0c:00": {"ATS_ENABLED": {"value": 0, "boot": "b"}}}
    module.save(path, memory)
    assert module.load(path) == memory
    path.write_text("{spoilt")
    assert module.load(path) == {}
