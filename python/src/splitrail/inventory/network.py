"""Addresses: every host has one of its own, and the rails of all hosts fit together."""

from __future__ import annotations

import re
from collections.abc import Iterator
from ipaddress import IPv4Address, IPv4Network, ip_address
from typing import Any

from splitrail.inventory.fault import Fault
from splitrail.inventory.reader import Inventory
from splitrail.inventory.resolve import Fleet
from splitrail.rails import RailError, parse

# What is meant for an address: dots and digits alone.
_DOTTED = re.compile(r"^[0-9.]+$")
_NAME = re.compile(r"^[A-Za-z0-9]([A-Za-z0-9.-]{0,251}[A-Za-z0-9])?$")
_LINK = 31  # prefix length of a link of its own (RFC 3021)
Rails = dict[str, list[dict[str, Any]]]
# A network, the rail that it belongs to, and the first host on it.
Owner = tuple[IPv4Network, int, str]


def faults(inventory: Inventory, fleet: Fleet) -> Iterator[Fault]:
    """Everything that is wrong with the addresses of an inventory."""
    yield from _Management(inventory, fleet).faults()
    rails: Rails = {}
    wrong = False
    for host in inventory.hosts:
        raw = fleet[host].get("roce_nic_rails")
        try:
            if raw:
                rails[host] = parse(raw)
        except RailError as error:
            wrong = True
            cure = "correct the rail that it names"
            yield fleet[host].fault("roce_nic_rails", str(error), cure)
    # Together only when each is right by itself.
    if rails and not wrong:
        yield from _Fabric(inventory, fleet, rails).faults()


class _Management:
    """The addresses by which hosts are reached."""

    def __init__(self, inventory: Inventory, fleet: Fleet) -> None:
        self._inventory = inventory
        self._fleet = fleet
        self._taken: dict[str, str] = {}

    def faults(self) -> Iterator[Fault]:
        for host in self._inventory.hosts:
            values = self._fleet[host]
            address = values.get("ansible_host")
            if address is not None:
                yield from self._address(host, str(address))
            elif values.get("ansible_connection") != "local" and "ansible_host" not in values.variables:
                said, cure = (
                    "is not set; allowed: an address or name",
                    f"write `{host}: {{ansible_host: ADDRESS}}`",
                )
                yield self._inventory.fault(host, said, cure, "ansible_host", (host,))

    def _address(self, host: str, address: str) -> Iterator[Fault]:
        values = self._fleet[host]
        if not _is_address(address):
            said = f"is {address!r}; allowed: an IP address such as 10.10.0.11, or a name"
            yield values.fault("ansible_host", said, "correct it")
        elif address in self._taken:
            said = f"is {address}, which {self._taken[address]} has too; allowed: one of its own"
            yield values.fault("ansible_host", said, "give each host its own address")
        self._taken.setdefault(address, host)
        try:
            network = IPv4Network(str(values.get("lab_network")))
            outside = ip_address(address) not in network or int(ip_address(address)) - int(network[0]) <= 1
        except ValueError:
            return  # no lab, or said of lab_network or ansible_host itself
        if outside:
            said = (
                f"is {address}; allowed: an address of lab_network {network}, whose first is this machine's"
            )
            yield values.fault("ansible_host", said, "correct it, or lab_network")


def _is_address(text: str) -> bool:
    if _DOTTED.match(text) or ":" in text:
        try:
            ip_address(text)
        except ValueError:
            return False
        return True
    return bool(_NAME.match(text))


class _Fabric:
    """The rails of all hosts together; each host's are right by themselves."""

    def __init__(self, inventory: Inventory, fleet: Fleet, rails: Rails) -> None:
        self._inventory = inventory
        self._fleet = fleet
        self._rails = rails
        self._networks: dict[int, dict[IPv4Network, list[str]]] = {}
        for host, mine in rails.items():
            for rail in mine:
                of = self._networks.setdefault(rail["rail"], {})
                of.setdefault(IPv4Network(rail["network"]), []).append(host)

    def faults(self) -> Iterator[Fault]:
        yield from self._same_rails()
        yield from self._addresses()
        yield from self._subnets()
        yield from self._overlaps()

    def _fault(self, host: str, number: int, said: str, cure: str) -> Fault:
        return self._fleet[host].fault("roce_nic_rails", f"rail {number} {said}", cure)

    def _same_rails(self) -> Iterator[Fault]:
        numbers = {
            host: [rail["rail"] for rail in self._rails.get(host, [])] for host in self._inventory.hosts
        }
        counts = [tuple(of) for of in numbers.values()]
        usual = max(set(counts), key=lambda one: (counts.count(one), len(one)))
        for host, mine in numbers.items():
            if tuple(mine) != usual:
                said = f"has the rails {_listed(mine)}; allowed: those of the other hosts, {_listed(usual)}"
                cure = "declare the same rails on every host, or leave the host out"
                yield self._fleet[host].fault("roce_nic_rails", said, cure)

    def _addresses(self) -> Iterator[Fault]:
        taken = {
            str(self._fleet[host].get("ansible_host")): f"{host}'s own" for host in self._inventory.hosts
        }
        cure = "give every rail of every host an address of its own"
        for host, mine in self._rails.items():
            for rail in mine:
                # The switch's address on a link is this link's alone; on a subnet it serves every host.
                link = IPv4Network(rail["network"]).prefixlen >= _LINK
                for address in (rail["ip"], rail["gateway"] if link else ""):
                    if address in taken:
                        said = (
                            f"has the address {address}, which is {taken[address]}; allowed: one of its own"
                        )
                        yield self._fault(host, rail["rail"], said, cure)
                    elif address:
                        taken[address] = f"that of rail {rail['rail']} of {host}"

    def _subnets(self) -> Iterator[Fault]:
        """Rail N is one subnet, or each host has a gateway on it."""
        bare = {
            (host, rail["rail"]) for host, mine in self._rails.items() for rail in mine if not rail["gateway"]
        }
        for number, of in self._networks.items():
            usual = max(of, key=lambda network: len(of[network]))
            for network, hosts in of.items():
                for host in hosts if len(of) > 1 else ():
                    if (host, number) in bare and (network != usual or usual.prefixlen >= _LINK):
                        said = (
                            f"is on {network} without a gateway; allowed: {usual} as elsewhere, or a gateway"
                        )
                        yield self._fault(host, number, said, "correct the address or prefix length")

    def _overlaps(self) -> Iterator[Fault]:
        owners: list[Owner] = [
            (network, number, hosts[0])
            for number, of in self._networks.items()
            for network, hosts in of.items()
        ]
        # By their beginning: what overlaps lies in a network that is still open.
        owners.sort(key=lambda owner: (int(owner[0].network_address), owner[0].prefixlen))
        open_: list[Owner] = []
        for owner in owners:
            network, number, host = owner
            open_ = [other for other in open_ if other[0].broadcast_address >= network.network_address]
            for other, rail, who in open_:
                said = f"network {network} overlaps with {other} of rail {rail} on {who}"
                yield self._fault(host, number, said, "give each rail networks of its own")
            open_.append(owner)
        yield from self._management(owners)

    def _management(self, owners: list[Owner]) -> Iterator[Fault]:
        """Addresses of management that lie on a rail."""
        managed: list[tuple[IPv4Address, str]] = []
        for host in self._inventory.hosts:
            try:
                managed.append((IPv4Address(str(self._fleet[host].get("ansible_host"))), host))
            except ValueError:
                continue  # a name, or said already
        sizes = {network.prefixlen for network, _, _ in owners}
        by_network = {network: (number, who) for network, number, who in owners}
        for address, host in managed:
            for size in sizes:
                network = IPv4Network((address, size), strict=False)
                if network in by_network:
                    number, who = by_network[network]
                    said = f"is {address}, in the network {network} of rail {number} on {who}"
                    cure = "keep management on a network of its own, or correct the rail's address"
                    yield self._fleet[host].fault("ansible_host", said, cure)


def _listed(of: list[int] | tuple[int, ...]) -> str:
    return ", ".join(map(str, of)) or "none"
