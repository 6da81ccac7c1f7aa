"""Compare what must be the same on all nodes, and name the odd one."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable
from typing import Any

from splitrail.ansible.module_utils.splitrail_checks import check
from splitrail.fabric.mesh_data import Node, RailPort

Check = dict[str, Any]


def fleet_checks(nodes: Iterable[Node]) -> dict[str, list[Check]]:
    """Findings by host: each rail's firmware among cards of its kind, and its rate among the same rail's."""
    ports = [(node.name, port) for node in nodes for port in node.rails if port.device and not port.soft]
    firmware: dict[str, Counter[str]] = defaultdict(Counter)
    rates: dict[int, Counter[float]] = defaultdict(Counter)
    for _, port in ports:
        firmware[port.board][port.firmware] += 1
        rates[port.rail][port.rate_gbps] += 1
    made: dict[str, list[Check]] = defaultdict(list)
    for name, port in ports:
        # Where as many have one as the other the newer counts, or the faster.
        usual = max(firmware[port.board], key=lambda value: (firmware[port.board][value], _version(value)))
        rate = max(rates[port.rail], key=lambda value: (rates[port.rail][value], value))
        made[name] += [_same_firmware(name, port, usual, firmware[port.board]), _same_rate(name, port, rate)]
    return made


def _same_firmware(name: str, port: RailPort, usual: str, all_of_kind: Counter[str]) -> Check:
    known = bool(port.firmware)
    return check(
        "fabric.firmware",
        f"{port.name} {port.board or port.device}",
        known and port.firmware == usual,
        port.firmware or "not told",
        f"{usual or 'any'} (on {all_of_kind[usual]} of {all_of_kind.total()})",
        hint=f"Bring {port.name} of {name} to firmware {usual}, or all the others to another, and reboot it.",
    )


def _same_rate(name: str, port: RailPort, usual: float) -> Check:
    return check(
        "fabric.rate",
        f"{port.name} as the others",
        port.rate_gbps == usual,
        port.rate_gbps,
        usual,
        unit="Gb/s",
        hint=f"Check cable, transceiver and switch port of {port.name} of {name}: most run at {usual:g}.",
    )


def _version(text: str) -> list[tuple[int, str]]:
    return [(int(part) if part.isdigit() else -1, part) for part in text.replace("-", ".").split(".")]
