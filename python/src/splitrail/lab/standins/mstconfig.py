"""Stand-in for mstconfig and mlxconfig: query, set and reset of a card's configuration.

A value that is set is the next boot's; it becomes the current one when the machine has booted.
"""

from __future__ import annotations

import sys
from typing import Any

from splitrail.lab.standins import standin

ERROR = 3
NAME = "mstconfig"
BOOLS = {0: "False", 1: "True"}
# Key: default, names of values, and the key without which it is not there. A key of a port ends in _P1.
KEYS: dict[str, tuple[int, dict[int, str], str]] = {
    "NUM_OF_VFS": (0, {}, ""),
    "SRIOV_EN": (0, BOOLS, ""),
    "LINK_TYPE_P1": (2, {1: "IB", 2: "ETH"}, ""),
    "ROCE_CC_PRIO_MASK_P1": (255, {}, ""),
    "CNP_802P_PRIO_P1": (6, {}, ""),
    "CNP_DSCP_P1": (48, {}, ""),
    "ROCE_CONTROL": (2, {0: "DEVICE_DEFAULT", 1: "ROCE_DISABLE", 2: "ROCE_ENABLE"}, ""),
    "PCI_WR_ORDERING": (0, {0: "per_mkey", 1: "force_relax"}, ""),
    "ATS_ENABLED": (0, BOOLS, ""),
    "MAX_ACC_OUT_READ": (0, {}, "ADVANCED_PCI_SETTINGS"),
    "EXP_ROM_UEFI_x86_ENABLE": (0, BOOLS, ""),
    "ADVANCED_PCI_SETTINGS": (0, BOOLS, ""),
}


class Refused(Exception):
    """What the tool complains of."""


def keys(card: dict[str, Any]) -> dict[str, tuple[int, dict[int, str], str]]:
    """The keys of a card with its ports, without those that it lacks."""
    made = {}
    for name, about in KEYS.items():
        ports = range(1, card["ports"] + 1) if name.endswith("_P1") else [1]
        for port in ports:
            made[f"{name[:-1]}{port}" if name.endswith("_P1") else name] = about
    return {name: about for name, about in made.items() if name not in card["missing"]}


def shown(known: dict[str, Any], values: dict[str, dict[str, int]]) -> list[str]:
    """The keys that the card shows at present: some only appear with another one."""
    return [name for name, (_, _, needs) in known.items() if not needs or values["next"].get(needs)]


def value_of(name: str, given: str, names: dict[int, str]) -> int:
    """The number in what was given. Raises Refused."""
    by_name = {text.lower(): number for number, text in names.items()}
    if given.lower() in by_name:
        return by_name[given.lower()]
    if not given.isdigit() or (names and int(given) not in names):
        raise Refused(f"Unknown value {given} for the parameter {name}")
    return int(given)


def cell(value: int, names: dict[int, str]) -> str:
    """A value as the tool prints it."""
    return f"{names[value]}({value})" if value in names else str(value)


def opening(device: str, columns: list[str]) -> None:
    """The head of every answer."""
    print("\nDevice #1:\n----------\n")
    for title, text in (
        ("Device type:", "ConnectX7"),
        ("Name:", "MCX75310AAS-NEA_Ax"),
        ("Description:", "a stand-in for a ConnectX-7 adapter card"),
        ("Device:", device),
    ):
        print(f"{title:<20}{text:<20}")
    print(f"\n{'Configurations:':<57}{''.join(f'{column:<21}' for column in columns)}")


def query(device: str, known: dict[str, Any], values: Any, wanted: list[str], *, verbose: bool) -> None:
    """Print what is asked for. Raises Refused."""
    columns = ["default", "current", "next"] if verbose else ["next"]
    titles = {"default": "Default", "current": "Current", "next": "Next Boot"}
    opening(device, [titles[column] for column in columns])
    there = shown(known, values)
    for name in wanted:
        if name not in there:
            raise Refused(complaint(name))
    differs = False
    for name in wanted or there:
        row = [values[column][name] for column in columns]
        star = "*" if any(value != row[-1] for value in row) else " "
        differs |= star == "*"
        cells = " ".join(f"{cell(value, known[name][1]):<20}" for value in row)
        print(f"{star}       {name:<44}{cells}")
    if differs:
        print("The '*' shows parameters with next value different from default/current value.")


def complaint(name: str) -> str:
    """What is said of a key that the card does not show."""
    everywhere = {f"{key[:-1]}{port}" if key.endswith("_P1") else key for key in KEYS for port in (1, 2)}
    return (
        f"The Device doesn't support {name} parameter" if name in everywhere else f"Unknown Parameter: {name}"
    )


def change(device: str, known: dict[str, Any], values: Any, wanted: dict[str, str], *, yes: bool) -> None:
    """Set values for the next boot: all of them, or none. Raises Refused."""
    opening(device, ["Next Boot", "New"])
    there = shown(known, values)
    for name in wanted:
        if name not in there:
            raise Refused(complaint(name))
    new = {name: value_of(name, given, known[name][1]) for name, given in wanted.items()}
    for name, value in new.items():
        names = known[name][1]
        print(f"        {name:<44}{cell(values['next'][name], names):<20} {cell(value, names):<20}")
    print("\n Apply new Configuration? (y/n) [n] : ", end="", flush=True)
    if yes:
        print("y")
    elif sys.stdin.readline().strip().lower() not in {"y", "yes"}:
        raise Refused("Aborted by user.")
    values["next"].update(new)
    print("Applying... Done!\n-I- Please reboot machine to load new configurations.")


def values_of(
    state: dict[str, Any], pci: str, known: dict[str, Any], about: dict[str, Any], *, booted: bool
) -> Any:
    """A card's values, brought forward by a boot. The functions of a card share them."""
    values = state.setdefault(pci.rpartition(".")[0], {"default": {}, "current": {}, "next": {}})
    for name, (default, _, _) in known.items():
        for column in ("default", "current", "next"):
            values[column].setdefault(name, default)
    if booted:
        for name, value in values["next"].items():
            if name not in about["stuck"]:
                values["current"][name] = value
    return values


def parse(arguments: list[str]) -> tuple[str, set[str], list[str]]:
    """The device, the flags and the rest of a command line."""
    device, flags, rest = "", set(), []
    words = iter(arguments)
    for word in words:
        if word in {"-d", "--dev"}:
            device = next(words, "")
        elif word.startswith("-"):
            flags.add(word)
        else:
            rest.append(word)
    return device, flags, rest


def answer(device: str, flags: set[str], rest: list[str]) -> None:
    """Do what is asked for. Raises Refused."""
    pci = device if device.count(":") > 1 else f"0000:{device}"
    if not standin.permitted() or pci not in standin.cards():
        raise Refused("Failed to open the device")
    about = standin.card(pci)
    known = keys(about)
    with standin.memory(NAME) as (state, booted):
        if booted:
            for other in standin.cards():
                values_of(state, other, keys(standin.card(other)), standin.card(other), booted=True)
        values = values_of(state, pci, known, about, booted=False)
        if rest[:1] in (["q"], ["query"]):
            query(device, known, values, rest[1:], verbose="-e" in flags)
        elif rest[:1] in (["s"], ["set"]):
            pairs = (part.partition("=") for part in rest[1:])
            change(device, known, values, {name: given for name, _, given in pairs}, yes="-y" in flags)
        else:
            raise Refused(f"Unknown argument: {' '.join(rest)}")


def main(arguments: list[str]) -> int:
    """The exit code."""
    device, flags, rest = parse(arguments)
    if "-v" in flags:
        print("mstconfig, mstflint 4.21.0, Git SHA Hash: N/A")
        return 0
    if broken := standin.card(device)["broken"]:
        print(broken)
        return -11 % 256
    try:
        answer(device, flags, rest)
    except Refused as why:
        print(f"-E- {why}")
        return ERROR
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
