"""Declared rails: what follows from good ones, and what is said of bad ones."""

from __future__ import annotations

from typing import Any

import pytest

from splitrail.ansible.filter.splitrail_rails import splitrail_repeated
from splitrail.rails import RailError, parse

GOOD = {"rail": 3, "pci": "0000:58:00.0", "address": "10.30.3.4/31", "gateway": "10.30.3.5"}


def without(key: str) -> dict[str, Any]:
    return {name: value for name, value in GOOD.items() if name != key}


def test_what_follows_from_a_rail() -> None:
    assert parse([GOOD]) == [
        {
            "rail": 3,
            "name": "rail3",
            "pci": "0000:58:00.0",
            "mac": "",
            "address": "10.30.3.4/31",
            "ip": "10.30.3.4",
            "network": "10.30.3.4/31",
            "gateway": "10.30.3.5",
            "table": 103,
        }
    ]


def test_a_larger_network_without_gateway() -> None:
    (rail,) = parse([{"rail": 0, "mac": "02:00:00:00:00:01", "address": "10.30.0.7/24"}])
    assert (rail["network"], rail["gateway"], rail["ip"]) == ("10.30.0.0/24", "", "10.30.0.7")


def test_a_rail_may_leave_its_nic_to_the_topology() -> None:
    (rail,) = parse([without("pci")])
    assert (rail["pci"], rail["mac"]) == ("", "")


def test_no_rails_are_fine() -> None:
    assert parse([]) == []


def test_rails_come_in_their_order() -> None:
    second = {"rail": 1, "pci": "0000:2a:00.0", "address": "10.30.1.4/31"}
    assert [rail["name"] for rail in parse([GOOD, second])] == ["rail1", "rail3"]


@pytest.mark.parametrize(
    ("raw", "said"),
    [
        ({"rail": 0}, "rails are a list, got dict"),
        ([without("address")], "rail 3.address: Field required"),
        ([without("rail")], "rail at position 0.rail: Field required"),
        (
            [without("pci"), {**GOOD, "rail": 4, "address": "10.30.4.4/31", "gateway": None}],
            "rail 3: name the NIC of every rail by pci or by mac, or of none",
        ),
        (
            [{**GOOD, "mac": "02:00:00:00:00:01"}],
            "rail 3: name the NIC by pci or by mac, by one of them only",
        ),
        ([{**GOOD, "pci": "58:00.0"}], "rail 3.pci: String should match"),
        ([{**GOOD, "rail": 100}], "rail 100.rail: Input should be less than or equal to 99"),
        ([{**GOOD, "address": "10.30.3.4"}], "rail 3: address 10.30.3.4/32 has no prefix length"),
        ([{**GOOD, "address": "10.30.3.400/31"}], "rail 3.address: "),
        ([{**GOOD, "gateway": "10.30.3.6"}], "rail 3: gateway 10.30.3.6 is not on the link 10.30.3.4/31"),
        ([{**GOOD, "gateway": "10.30.3.4"}], "rail 3: gateway 10.30.3.4 is the node's own address"),
        (
            [{**GOOD, "adress": "10.30.3.4/31"}],
            "rail 3.adress is not a key of a rail: rail, pci, mac, address, gateway",
        ),
        (
            [GOOD, {**GOOD, "rail": 4, "address": "10.30.4.4/31", "gateway": None}],
            "pci 0000:58:00.0 is declared 2 times",
        ),
        ([GOOD, {**GOOD, "pci": "0000:59:00.0"}], "rail 3 is declared 2 times"),
        ([GOOD, {**GOOD, "rail": 4, "pci": "0000:59:00.0"}], "network 10.30.3.4/31 is declared 2 times"),
        (["rail3"], "rail at position 0: "),
    ],
)
def test_a_bad_rail_is_named(raw: Any, said: str) -> None:
    with pytest.raises(RailError) as caught:
        parse(raw)
    assert said in str(caught.value)


def test_every_fault_is_named_at_once() -> None:
    with pytest.raises(RailError) as caught:
        parse([without("address"), {**GOOD, "rail": 5, "gateway": "10.0.0.1"}])
    assert "rail 3.address: Field required" in str(caught.value)
    assert "rail 5: gateway 10.0.0.1 is not on the link" in str(caught.value)


def test_repeated() -> None:
    assert splitrail_repeated(["b", "a", "b", "c", "a"]) == ["a", "b"]
