#!/usr/bin/python
"""Compare the firmware configuration of a node's NICs with the declared one, and set what differs."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ansible.module_utils.basic import AnsibleModule
from ansible.module_utils.splitrail_checks import check, unmade

DOCUMENTATION = r"""
module: splitrail_roce_firmware
short_description: Compare the firmware configuration of a node's NICs with the declared one
description:
  - Asks each card once for its default, current and next-boot values, with C(mstconfig) or C(mlxconfig).
  - With O(state=applied), sets in one call a card what the next boot would not bring. Keys that only appear
    with ADVANCED_PCI_SETTINGS take a second call.
  - A value that is set for the next boot waits for a reboot, which is not made here. One that did not take at
    a boot is not set again; the check says so.
options:
  nics: {description: "Rails with C(name) and C(pci), which is empty where there is none.", type: list,
         elements: dict, required: true}
  keys: {description: "Values of keys that every card must have; of a port as C(..._P1).", type: dict,
         required: true}
  where_present: {description: Values of keys that some cards lack., type: dict, default: {}}
  state: {description: Whether to set anything., type: str, choices: [applied, measured], default: applied}
  remember: {description: File of what was set and in which boot., type: path,
             default: /var/lib/splitrail/roce_nic/firmware.json}
author: The splitrail authors
"""

EXAMPLES = r"""
- splitrail_roce_firmware:
    nics: [{name: rail0, pci: "0000:0c:00.0"}]
    keys: {ADVANCED_PCI_SETTINGS: 1, ATS_ENABLED: 0}
"""

RETURN = r"""
checks: {description: The findings., type: list, elements: dict, returned: always}
asked: {description: What was set as C(card KEY=value)., type: list, elements: str, returned: always}
reboot: {description: Whether a reboot would bring values into effect., type: bool, returned: always}
seconds: {description: How long it took., type: float, returned: always}
"""

CHECK = "roce_nic.firmware"
UNLOCKS = "ADVANCED_PCI_SETTINGS"
TOOLS = ("mstconfig", "mlxconfig")
COLUMNS = ("Default", "Current", "Next Boot")
# A star where values differ, RO for what cannot be set, the key, a value a column.
ROW = re.compile(r"^\*?\s*(?:RO\s+)?\s+([A-Za-z][\w\[\].]*)\s+(\S.*)$")
Check = dict[str, Any]
Values = dict[str, dict[str, Any]]


class ToolError(Exception):
    """The tool gave no usable answer; the message is its complaint."""


def run(*command: str) -> tuple[int, str]:
    """Exit code and output of a command. Raises ToolError."""
    try:
        done = subprocess.run(
            command,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=60,
            check=False,
            stdin=subprocess.DEVNULL,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise ToolError(str(error)) from error
    return done.returncode, done.stdout + done.stderr


def parse(output: str) -> Values:
    """Key to its values by column. A value is a number, or the text where there is none in it.

    Raises ToolError when there is no table in the output.
    """
    lines = output.splitlines()
    head = next((line for line in lines if line.startswith("Configurations:")), "")
    columns = [column for column in COLUMNS if column in head]
    if "Next Boot" not in columns:
        raise ToolError(complaint(output))
    found: Values = {}
    for line in lines[lines.index(head) + 1 :]:
        match = ROW.match(line)
        cells = match[2].split() if match else []
        if match and len(cells) == len(columns):
            found[match[1]] = {column: value(cell) for column, cell in zip(columns, cells, strict=True)}
    if not found:
        raise ToolError(complaint(output))
    return found


def value(cell: str) -> int | str:
    """The number in ``True(1)`` or ``44``."""
    match = re.fullmatch(r"(?:[^()]*\()?(\d+)\)?", cell)
    return int(match[1]) if match else cell


def complaint(output: str) -> str:
    """What a tool said was wrong."""
    said = [line.removeprefix("-E-").strip() for line in output.splitlines() if line.startswith("-E-")]
    lines = [line.strip() for line in output.splitlines() if line.strip()]
    return "; ".join(said) or (
        f"no table in its answer, which ends with {lines[-1]!r}" if lines else "no answer"
    )


@dataclass
class Card:
    """A card: its functions share their configuration, so it is asked and set by the first that is a rail."""

    device: str
    rails: dict[int, str] = field(default_factory=dict)  # port to the rail on it
    values: Values = field(default_factory=dict)
    trouble: str = ""  # why it could not be asked
    refused: str = ""  # what it said when it was set

    @property
    def name(self) -> str:
        """What it is remembered by."""
        return self.device.rpartition(".")[0]

    def wanted(self, keys: dict[str, int]) -> dict[str, tuple[str, int]]:
        """Each key with the rail that it is for; one of a port for each port in use."""
        first = min(self.rails.items())[1]
        made = {}
        for key, number in keys.items():
            if key.endswith("_P1"):
                for port, rail in sorted(self.rails.items()):
                    made[f"{key[:-1]}{port}"] = (rail, number)
            else:
                made[key] = (first, number)
        return made


def cards_of(nics: list[dict[str, Any]]) -> list[Card]:
    """The cards of the rails. Function N of a card is its port N+1."""
    cards: dict[str, Card] = {}
    for nic in sorted((nic for nic in nics if nic["pci"]), key=lambda nic: str(nic["pci"])):
        name, _, function = nic["pci"].rpartition(".")
        cards.setdefault(name, Card(nic["pci"])).rails[int(function) + 1] = nic["name"]
    return list(cards.values())


@dataclass
class Firmware:
    """The tool, and what it was asked for in which boot; tests put answers of their own in place."""

    tool: str
    boot: str
    memory: dict[str, dict[str, Any]] = field(default_factory=dict)
    run: Callable[..., tuple[int, str]] = run
    asked: list[str] = field(default_factory=list)

    def query(self, card: Card) -> None:
        """Read a card's values, or why they could not be read."""
        try:
            code, output = self.run(self.tool, "-d", card.device, "-e", "q")
            # The tool may name some groups of keys that it could not read, exit with an error, and still show
            # all others.
            card.values, card.trouble = parse(output), ""
            if code < 0:
                card.values, card.trouble = {}, f"ended by signal {-code}"
        except ToolError as error:
            card.values, card.trouble = {}, str(error)

    def due(self, card: Card, wanted: dict[str, tuple[str, int]]) -> dict[str, int]:
        """What would have to be set now."""
        remembered = self.memory.get(card.name, {})
        found = {}
        for key, (_, number) in wanted.items():
            if key not in card.values or card.values[key]["Next Boot"] == number:
                continue
            if not failed_before(remembered.get(key), number, self.boot):
                found[key] = number
        return found

    def store(self, card: Card, values: dict[str, int]) -> None:
        """Set values for the next boot, in one call, and remember it."""
        pairs = [f"{key}={number}" for key, number in sorted(values.items())]
        try:
            code, output = self.run(self.tool, "-d", card.device, "-y", "set", *pairs)
        except ToolError as error:
            code, output = 1, str(error)
        if code != 0:
            card.refused = f"{' '.join(pairs)}: {complaint(output)}"
            return
        self.asked += [f"{card.name} {pair}" for pair in pairs]
        for key, number in values.items():
            self.memory.setdefault(card.name, {})[key] = {"value": number, "boot": self.boot}

    def forget(self, card: Card, wanted: dict[str, tuple[str, int]]) -> None:
        """Drop from memory what has taken effect, so that it may be set again when it is changed again."""
        remembered = self.memory.get(card.name, {})
        for key, (_, number) in wanted.items():
            if card.values.get(key, {}).get("Current") == number:
                remembered.pop(key, None)

    def apply(self, card: Card, keys: dict[str, int], *, pretend: bool) -> bool:
        """Set what differs; whether anything did. Pretending, nothing is set."""
        wanted = card.wanted(keys)
        self.forget(card, wanted)
        due = self.due(card, wanted)
        if pretend or not due:
            return bool(due)
        if UNLOCKS in due and any(key not in card.values for key in wanted):
            # Alone and first: what it hides can then be set before the same boot.
            self.store(card, {UNLOCKS: due[UNLOCKS]})
            self.query(card)
            due = self.due(card, wanted)
        if due and not card.refused:
            self.store(card, due)
        refused = card.refused
        self.query(card)
        card.refused = refused
        return True

    def checks(self, card: Card, keys: dict[str, int], optional: frozenset[str]) -> list[Check]:
        """What is said of each declared key of a card."""
        made = []
        remembered = self.memory.get(card.name, {})
        for key, (rail, number) in card.wanted(keys).items():
            subject = f"{rail} {card.device} {key}"
            base = re.sub(r"_P\d$", "_P1", key)
            if card.trouble:
                hint = (
                    f"Run `{self.tool} -d {card.device} -e q` as root and look at the card with `lspci -vv`."
                )
                made.append(unmade(CHECK, subject, card.trouble, number, hint=hint))
            elif key not in card.values:
                if base not in optional:
                    made.append(absent(subject, number))
            else:
                gave_up = failed_before(remembered.get(key), number, self.boot)
                made.append(judge(subject, card, key, number, gave_up=gave_up))
        return made


def elsewhere(nics: list[dict[str, Any]], keys: dict[str, int]) -> list[Check]:
    """The checks of rails whose NIC is no PCI device, or is not there."""
    hint = "Look for the NIC with `lspci -D`; a NIC without firmware keys wants none in roce_nic_firmware."
    return [
        unmade(CHECK, f"{nic['name']} {key}", "no PCI device", number, hint=hint)
        for nic in nics
        if not nic["pci"]
        for key, number in keys.items()
    ]


def failed_before(remembered: Any, number: int, boot: str) -> bool:
    """Whether the value was set in an earlier boot; what has taken effect is not remembered any more."""
    return bool(remembered and remembered["value"] == number and remembered["boot"] != boot)


def absent(subject: str, number: int) -> Check:
    """The check of a key that the card does not show."""
    hint = (
        "Update the card's firmware, or take the key out of roce_nic_firmware; keys that some cards lack "
        "belong into roce_nic_firmware_where_present."
    )
    made: Check = check(CHECK, subject, False, "the card has no such key", number, hint=hint)
    return made


def judge(subject: str, card: Card, key: str, number: int, *, gave_up: bool) -> Check:
    """The check of a key: the value in effect and that of the next boot."""
    values = card.values[key]
    following = values["Next Boot"]
    current = values.get("Current", "unknown")
    measured: Any = current if current == following else f"{current}, next boot {following}"
    ok = current == number == following
    if card.refused and not ok:
        hint = f"The card refused {card.refused}. Correct roce_nic_firmware or update the card's firmware."
    elif gave_up and not ok:
        measured = f"{measured}: not taken at the last boot"
        hint = (
            "Power the server off and on: not every key is loaded by a warm reboot. If that does not help, "
            "read `dmesg | grep mlx5`, and update the card's firmware. The value is not set again."
        )
    elif following == number and current == "unknown":
        hint = "Update the card's firmware: it does not tell which values are in effect."
    elif following == number:
        measured = f"pending: {measured}"
        hint = (
            "Reboot the node, or allow it with roce_nic_reboot_ok: the value takes effect at the next boot."
        )
    else:
        hint = "Run this playbook again: it sets the value for the next boot."
    made: Check = check(CHECK, subject, ok, measured, number, hint=hint)
    return made


def find_tool() -> str:
    """The first tool that is installed; empty when none is."""
    return next((tool for tool in TOOLS if shutil.which(tool)), "")


def load(path: Path) -> dict[str, dict[str, Any]]:
    """What earlier runs set; nothing when the file is missing or spoilt."""
    try:
        kept = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return kept if isinstance(kept, dict) else {}


def main() -> None:
    """Entry point of the module."""
    module = AnsibleModule(
        argument_spec={
            "nics": {"type": "list", "elements": "dict", "required": True},
            "keys": {"type": "dict", "required": True, "no_log": False},
            "where_present": {"type": "dict", "default": {}},
            "state": {"type": "str", "choices": ["applied", "measured"], "default": "applied"},
            "remember": {"type": "path", "default": "/var/lib/splitrail/roce_nic/firmware.json"},
        },
        supports_check_mode=True,
    )
    started = time.monotonic()
    try:
        optional = {key: int(number) for key, number in module.params["where_present"].items()}
        keys = {**optional, **{key: int(number) for key, number in module.params["keys"].items()}}
    except (TypeError, ValueError) as error:
        module.fail_json(msg=f"roce_nic_firmware: values are numbers: {error}")
    tool = find_tool()
    cards = cards_of(module.params["nics"])
    boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="utf-8").strip()
    remember = Path(module.params["remember"])
    firmware = Firmware(tool, boot, load(remember))
    if not tool:
        for card in cards:
            card.trouble = "neither mstconfig (package mstflint) nor mlxconfig is installed"
    changed = False
    if tool and keys:
        # A full query takes a card some seconds; cards answer side by side.
        with ThreadPoolExecutor(max_workers=8) as pool:
            list(pool.map(firmware.query, cards))
    for card in cards if tool and keys and module.params["state"] == "applied" else []:
        changed |= firmware.apply(card, keys, pretend=module.check_mode)
    if module.params["state"] == "applied" and not module.check_mode:
        save(remember, firmware.memory)
    only = frozenset(optional) - frozenset(module.params["keys"])
    checks = [made for card in cards for made in firmware.checks(card, keys, only)]
    checks += elsewhere(module.params["nics"], {key: keys[key] for key in keys if key not in only})
    module.exit_json(
        changed=changed,
        checks=checks,
        asked=firmware.asked,
        reboot=any(str(made["measured"]).startswith("pending") for made in checks),
        seconds=round(time.monotonic() - started, 1),
    )


def save(path: Path, memory: dict[str, Any]) -> None:
    """Remember, atomically; nothing is written when nothing is new."""
    if memory == load(path):
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    fresh = path.with_suffix(".new")
    fresh.write_text(json.dumps(memory, indent=1) + "\n", encoding="utf-8")
    fresh.replace(path)


if __name__ == "__main__":
    main()
