"""The rails of a node as an inventory declares them: checked, and with what follows from them written out."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from ipaddress import IPv4Address, IPv4Interface
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator


class RailError(ValueError):
    """Rails that cannot be configured; ``str()`` names every one at fault and the cure."""


class Rail(BaseModel):
    """One NIC port of a node and its place in the fabric.

    ``pci`` (``0000:0c:00.0``) or ``mac`` says which NIC it is; one of them, because two could disagree. With
    neither the node's own topology says it (module ``splitrail_roce_discover``).
    ``address`` is the node's with its prefix length, ``gateway`` the switch's on the same link, if other
    links are reached.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    # Rail N has the routing table 100 + N; the kernel's own tables start at 253.
    rail: int = Field(ge=0, le=99)
    pci: str = Field(default="", pattern=r"^([0-9a-f]{4}:[0-9a-f]{2}:[0-9a-f]{2}\.[0-7])?$")
    mac: str = Field(default="", pattern=r"^([0-9a-f]{2}(:[0-9a-f]{2}){5})?$")
    address: IPv4Interface
    gateway: IPv4Address | None = None

    @model_validator(mode="after")
    def _names_one_nic(self) -> Rail:
        if self.pci and self.mac:
            raise ValueError("name the NIC by pci or by mac, by one of them only")
        return self

    @model_validator(mode="after")
    def _lies_on_its_link(self) -> Rail:
        network = self.address.network
        if network.prefixlen == network.max_prefixlen:
            raise ValueError(f"address {self.address} has no prefix length: write it as 10.30.0.0/31")
        if self.gateway is None:
            return self
        if self.gateway not in network:
            raise ValueError(
                f"gateway {self.gateway} is not on the link {network}: correct it or the address"
            )
        if self.gateway == self.address.ip:
            raise ValueError(f"gateway {self.gateway} is the node's own address: write the switch's")
        return self

    def plain(self) -> dict[str, Any]:
        """The rail as plain data, with interface name, network and routing table."""
        return {
            "rail": self.rail,
            "name": f"rail{self.rail}",
            "pci": self.pci,
            "mac": self.mac,
            "address": str(self.address),
            "ip": str(self.address.ip),
            "network": str(self.address.network),
            "gateway": str(self.gateway) if self.gateway else "",
            "table": 100 + self.rail,
        }


def parse(raw: Any) -> list[dict[str, Any]]:
    """The rails of one node in their order, as plain data; raises RailError with all that is wrong."""
    if not isinstance(raw, list):
        raise RailError(f"rails are a list, got {type(raw).__name__}")
    rails, faults = [], []
    for position, entry in enumerate(raw):
        try:
            rails.append(Rail.model_validate(entry))
        except ValidationError as error:
            faults += [_explain(position, entry, dict(fault)) for fault in error.errors()]
    if len({bool(rail.pci or rail.mac) for rail in rails}) > 1:
        # Numbers given by topology could fall on a NIC that another rail names.
        bare = ", ".join(str(rail.rail) for rail in rails if not rail.pci and not rail.mac)
        faults.append(f"rail {bare}: name the NIC of every rail by pci or by mac, or of none")
    faults += _twice("rail", (str(rail.rail) for rail in rails))
    faults += _twice("pci", (rail.pci for rail in rails if rail.pci))
    faults += _twice("mac", (rail.mac for rail in rails if rail.mac))
    faults += _twice("network", (str(rail.address.network) for rail in rails))
    if faults:
        raise RailError("; ".join(faults))
    return [rail.plain() for rail in sorted(rails, key=lambda rail: rail.rail)]


def _twice(what: str, values: Iterable[str]) -> list[str]:
    # Two rails on one network would make the kernel answer for either on both.
    return [
        f"{what} {value} is declared {count} times: give each rail its own"
        for value, count in sorted(Counter(values).items())
        if count > 1
    ]


def _explain(position: int, entry: Any, fault: dict[str, Any]) -> str:
    number = (
        entry.get("rail", f"at position {position}") if isinstance(entry, dict) else f"at position {position}"
    )
    place = ".".join([f"rail {number}", *(str(part) for part in fault["loc"])])
    if fault["type"] == "extra_forbidden":
        return f"{place} is not a key of a rail: {', '.join(Rail.model_fields)} are"
    return f"{place}: {str(fault['msg']).removeprefix('Value error, ')}"
