"""Faults of cables: what they lead to, and which are refused."""

from __future__ import annotations

from pathlib import Path

import pytest

from splitrail.lab import cable
from splitrail.lab.cable import Fault, changed
from splitrail.lab.run import LabError

HEALTHY = {rail: Fault(rail) for rail in range(3)}


def test_names_fit_and_addresses_are_local() -> None:
    names = {
        cable.tap(lab, node, nic) for lab in ("a", "b") for node in ("n1", "n2") for nic in ("mgmt", "rail0")
    }
    assert len(names) == 8
    assert max(len(f"{name}-in") for name in names) == 15
    mac = cable.mac("a", "n1", "rail0")
    assert mac == cable.mac("a", "n1", "rail0") != cable.mac("a", "n1", "rail1")
    assert mac.startswith("02:")
    assert len(mac) == 17


def test_faults_add_up_until_healed() -> None:
    known = changed(HEALTHY, 0, "down", None)
    known = changed(known, 0, "rate", 15)
    known = changed(known, 0, "loss", 1.5)
    assert known[0].words(0) == "down, 15 Mbit/s, 1.5 % loss"
    assert known[1].words(1) == "healthy"
    assert changed(known, 0, "up", None)[0] == Fault(0, rate_mbit=15, loss_percent=1.5)
    assert changed(known, 0, "loss", 0)[0] == Fault(0, down=True, rate_mbit=15)
    assert changed(known, 0, "heal", None) == HEALTHY


def test_swapped_cables_come_back_whichever_is_healed() -> None:
    swapped = changed(HEALTHY, 0, "swap", 2)
    assert [fault.plugged for fault in swapped.values()] == [2, 1, 0]
    assert swapped[0].words(0) == "plugged into rail 2"
    assert changed(swapped, 0, "swap", 2) == HEALTHY
    assert changed(swapped, 0, "heal", None) == changed(swapped, 2, "heal", None) == HEALTHY
    ring = changed(swapped, 0, "swap", 1)
    assert [fault.plugged for fault in ring.values()] == [1, 2, 0]
    # Each socket holds one cable, at every step.
    for rail in range(3):
        ring = changed(ring, rail, "heal", None)
        assert sorted(fault.plugged for fault in ring.values()) == [0, 1, 2]
    assert ring == HEALTHY


@pytest.mark.parametrize(
    ("action", "value", "said"),
    [
        ("rate", None, "needs a value: Mbit/s, above 0"),
        ("rate", 0, "Mbit/s, above 0"),
        ("loss", None, "needs a value: percent"),
        ("loss", 101, "0 to 100"),
        ("loss", -1, "0 to 100"),
        ("swap", None, "needs a value: the number of another rail"),
        ("swap", 0, "another rail"),
        ("swap", 3, "another rail"),
        ("swap", 1.5, "another rail"),
        ("down", 1, "takes no value"),
        ("heal", 1, "takes no value"),
    ],
)
def test_refused(action: str, value: float | None, said: str) -> None:
    with pytest.raises(LabError, match=said):
        changed(HEALTHY, 0, action, value)


def test_faults_are_kept_and_health_is_no_file(tmp_path: Path) -> None:
    bad = changed(changed(HEALTHY, 1, "rate", 10), 0, "swap", 2)
    cable.declare(tmp_path, bad)
    assert {**HEALTHY, **cable.faults(tmp_path)} == bad
    cable.declare(tmp_path, HEALTHY)
    assert cable.faults(tmp_path) == {}
    assert list(tmp_path.iterdir()) == []


def test_a_rate_holds_in_both_directions() -> None:
    commands = [" ".join(argv) for argv, _ in cable.shaping("sr0", 12.5, shaped=False)]
    rates = [command for command in commands if " tbf " in command]
    assert [command.split()[4] for command in rates] == ["sr0", "sr0-in"]
    assert all("rate 12500000bit" in command for command in rates)
    assert "redirect dev sr0-in" in commands[-1]
    assert not any("delete" in command for command in commands)


def test_a_new_rate_replaces_the_old_one_and_health_removes_it() -> None:
    undo = cable.shaping("sr0", None, shaped=True)
    assert [argv[:3] for argv, _ in undo] == [["tc", "qdisc", "delete"]] * 2 + [["ip", "link", "delete"]]
    again = cable.shaping("sr0", 20, shaped=True)
    assert again[: len(undo)] == undo
    assert again[len(undo) :] == cable.shaping("sr0", 20, shaped=False)
    assert cable.shaping("sr0", None, shaped=False) == []


def test_loss_is_of_the_faulty_links_only_in_both_directions() -> None:
    text = cable.loss_rules("try", [("sr0", 1), ("sr1", 0.5)])
    assert [line.split() for line in text.splitlines() if "numgen" in line] == [
        [way, f'"{name}"', "numgen", "random", "mod", "1000000", "<", share, "drop"]
        for name, share in (("sr0", "10000"), ("sr1", "5000"))
        for way in ("iifname", "oifname")
    ]
    # What was there goes in the same transaction.
    table = "table bridge splitrail-lab-try"
    assert text.startswith(f"add {table}\ndelete {table}\ntable bridge")
    assert cable.loss_rules("try", []) == f"add {table}\ndelete {table}\n"
