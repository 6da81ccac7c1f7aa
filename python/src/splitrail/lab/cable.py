"""The cables of VM nodes: a tap a NIC, plugged into the lab's bridge or into a rail's, and a rail's faults.

A fault is declared in the node's `links.json` and applied from there, so that it outlives a power cycle. All
is done from this host; the guest sees what it would see with a bad cable.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection, Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from splitrail.lab import network
from splitrail.lab.files import write
from splitrail.lab.qemu import RAIL_MTU
from splitrail.lab.run import LabError, run
from splitrail.lab.spec import Lab

MANAGEMENT = "mgmt"
_MILLION = 1_000_000
_VALUES = {
    "rate": "Mbit/s, above 0",
    "loss": "percent of packets, 0 to 100",
    "swap": "the number of another rail of the node",
}
# What a shaped link lets through at once: a full frame and more, however slow it is.
_BURST = 64 * 1024
# What it queues before it drops, as a lossless fabric would: RDMA's go-back-N turns a drop into a collapse.
_QUEUE = 4 * 1024 * 1024


@dataclass(frozen=True)
class Fault:
    """What is wrong with the cable of one rail; `plugged` is the rail whose switch it leads to."""

    plugged: int
    down: bool = False
    rate_mbit: float | None = None
    loss_percent: float = 0.0

    def words(self, rail: int) -> str:
        """The fault as a person would say it."""
        said = [f"plugged into rail {self.plugged}"] if self.plugged != rail else []
        said += ["down"] if self.down else []
        said += [f"{self.rate_mbit:g} Mbit/s"] if self.rate_mbit else []
        said += [f"{self.loss_percent:g} % loss"] if self.loss_percent else []
        return ", ".join(said) or "healthy"


def nic(rail: int) -> str:
    """The id of a rail's NIC."""
    return f"rail{rail}"


def mac(lab: str, node: str, nic: str) -> str:
    """A NIC's address: from names, so that a node that is installed anew keeps it; locally administered."""
    digest = hashlib.sha256(f"{lab}.{node}.{nic}".encode()).digest()
    return ":".join(f"{byte:02x}" for byte in (0x02, *digest[:5]))


def tap(lab: str, node: str, nic: str) -> str:
    """The host's interface behind a NIC; the readable name, too long for the kernel, is its altname."""
    return f"sr{hashlib.sha256(f'{lab}.{node}.{nic}'.encode()).hexdigest()[:10]}"


def _inward(interface: str) -> str:
    """The interface that what the node sends on `interface` goes through, to be shaped."""
    return f"{interface}-in"


def faults(folder: Path) -> dict[int, Fault]:
    """The faulty rails of the node that lies in `folder`."""
    try:
        data = json.loads((folder / "links.json").read_text())
    except FileNotFoundError:
        return {}
    return {int(rail): Fault(**fault) for rail, fault in data.items()}


def declare(folder: Path, wanted: dict[int, Fault]) -> None:
    """Write down the faulty rails; healthy ones are left out."""
    bad = {rail: fault for rail, fault in wanted.items() if fault != Fault(rail)}
    if bad:
        write(
            folder / "links.json",
            json.dumps({rail: asdict(fault) for rail, fault in sorted(bad.items())}) + "\n",
        )
    else:
        (folder / "links.json").unlink(missing_ok=True)


def changed(known: dict[int, Fault], rail: int, action: str, value: float | None) -> dict[int, Fault]:
    """`known`, the state of all rails, after `action` on `rail`. Raises LabError for what cannot be done."""
    now = known[rail]
    if action in ("rate", "loss", "swap") and value is None:
        raise LabError(f"link {action} needs a value: {_VALUES[action]}")
    if action in ("up", "down", "heal") and value is not None:
        raise LabError(f"link {action} takes no value (got {value:g})")
    if action in ("up", "down"):
        return {**known, rail: replace(now, down=action == "down")}
    if action == "rate" and value is not None and value > 0:
        return {**known, rail: replace(now, rate_mbit=value)}
    if action == "loss" and value is not None and 0 <= value <= 100:  # noqa: PLR2004 (percent)
        return {**known, rail: replace(now, loss_percent=value)}
    if action == "swap" and value in known and value != rail:
        other = int(value)
        return {
            **known,
            rail: replace(now, plugged=known[other].plugged),
            other: replace(known[other], plugged=now.plugged),
        }
    if action == "heal":
        # Its own switch's socket may hold another rail's cable, which then goes where this one's was.
        healed = {
            each: replace(fault, plugged=now.plugged) if fault.plugged == rail else fault
            for each, fault in known.items()
        }
        return {**healed, rail: Fault(rail)}
    raise LabError(f"link {action} {value}: {_VALUES.get(action, 'no such action')}")


def plug(lab: Lab, node: str, wanted: dict[int, Fault]) -> None:
    """Make or heal the node's taps, each on its bridge and with what `wanted` says of its rail."""
    present = network.interfaces()
    _tap(present, lab, node, MANAGEMENT, lab.bridge)
    for rail in range(lab.rails):
        fault = wanted.get(rail, Fault(rail))
        _tap(present, lab, node, nic(rail), lab.rail_bridges[fault.plugged])
        name = tap(lab.name, node, nic(rail))
        for argv, ok in shaping(name, fault.rate_mbit, shaped=_inward(name) in present):
            run(argv, ok=ok)


def _tap(present: Collection[str], lab: Lab, node: str, which: str, bridge: str) -> None:
    name = tap(lab.name, node, which)
    if name not in present:
        run(["ip", "tuntap", "add", "dev", name, "mode", "tap"])
        run(["ip", "link", "property", "add", "dev", name, "altname", f"{lab.name}.{node}.{which}"])
    mtu = ("mtu", str(RAIL_MTU)) if which != MANAGEMENT else ()
    run(["ip", "link", "set", "dev", name, *mtu, "master", bridge, "up"])


def shaping(
    interface: str, rate_mbit: float | None, *, shaped: bool
) -> list[tuple[list[str], Sequence[int]]]:
    """How `interface` gets `rate_mbit` in both directions, or its full speed back.

    `shaped` says whether it has a rate now. Returns commands, each with its good exit codes.
    """
    inward = _inward(interface)
    undo: list[tuple[list[str], Sequence[int]]] = [
        (["tc", "qdisc", "delete", "dev", interface, "root"], (0, 2)),
        (["tc", "qdisc", "delete", "dev", interface, "ingress"], (0, 2)),
        (["ip", "link", "delete", "dev", inward], (0, 1)),
    ]
    if rate_mbit is None:
        return undo if shaped else []
    rate = ["tbf", "rate", f"{round(rate_mbit * _MILLION)}bit", "burst", str(_BURST), "limit", str(_QUEUE)]
    once = (0,)
    return [
        *(undo if shaped else []),
        (["tc", "qdisc", "replace", "dev", interface, "root", *rate], once),
        # What comes from the node has no queue of its own here: it is led through an interface that has one.
        (["ip", "link", "add", "name", inward, "mtu", str(RAIL_MTU), "type", "ifb"], once),
        (["ip", "link", "set", "dev", inward, "up"], once),
        (["tc", "qdisc", "replace", "dev", inward, "root", *rate], once),
        (["tc", "qdisc", "add", "dev", interface, "handle", "ffff:", "ingress"], once),
        (
            [
                *("tc", "filter", "add", "dev", interface, "parent", "ffff:", "protocol", "all"),
                *("u32", "match", "u32", "0", "0"),
                *("action", "mirred", "egress", "redirect", "dev", inward),
            ],
            once,
        ),
    ]


def unplug(lab: str, node: str) -> None:
    """Remove the node's taps, whatever its inventory says today."""
    for name, link in network.interfaces().items():
        if any(alt.startswith(f"{lab}.{node}.") for alt in link.get("altnames", ())):
            run(["ip", "link", "delete", "dev", name], ok=(0, 1))
            run(["ip", "link", "delete", "dev", _inward(name)], ok=(0, 1))


def loss_rules(lab: str, losses: Iterable[tuple[str, float]]) -> str:
    """nft's input that makes each (interface, percent) lose packets in both directions, and no other one."""
    table = f"bridge {network.loss_table(lab)}"
    text = f"add table {table}\ndelete table {table}\n"
    rules = [
        f'    {way} "{interface}" numgen random mod {_MILLION} < {round(percent * _MILLION / 100)} drop\n'
        for interface, percent in losses
        for way in ("iifname", "oifname")
    ]
    if rules:
        head = "    type filter hook forward priority filter;\n"
        text += f"table {table} {{\n  chain forward {{\n{head}{''.join(rules)}  }}\n}}\n"
    return text


def lose(lab: Lab, folders: dict[str, Path]) -> None:
    """Apply every node's packet loss at once; `folders` are the nodes' by name.

    By nft and not by netem, which many a host's kernel lacks.
    """
    losses = [
        (tap(lab.name, node, nic(rail)), fault.loss_percent)
        for node, folder in sorted(folders.items())
        for rail, fault in sorted(faults(folder).items())
        if fault.loss_percent
    ]
    run(["nft", "--file", "-"], stdin=loss_rules(lab.name, losses))
