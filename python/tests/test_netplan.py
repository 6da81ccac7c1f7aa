"""What netplan is told of the rails says the same as the files of systemd-networkd."""

from __future__ import annotations

import configparser
from pathlib import Path
from typing import Any

import jinja2
import pytest
import yaml

from splitrail.rails import parse

TEMPLATES = Path(__file__).parents[2] / "roles/roce_nic/templates"
RAILS = parse(
    [
        {"rail": 0, "pci": "0000:0c:00.0", "address": "10.30.0.0/31", "gateway": "10.30.0.1"},
        {"rail": 1, "pci": "0000:0d:00.0", "address": "10.30.1.2/24"},
    ]
)
# As Ansible's module `template` does.
JINJA = jinja2.Environment(  # noqa: S701  # no HTML
    trim_blocks=True, keep_trailing_newline=True, undefined=jinja2.StrictUndefined
)


def render(name: str, **variables: Any) -> str:
    template = JINJA.from_string((TEMPLATES / name).read_text(encoding="utf-8"))
    return template.render(ansible_managed="managed", roce_nic_mtu=9000, **variables)


def sections(text: str) -> list[tuple[str, dict[str, str]]]:
    """systemd's files repeat sections, which configparser does not know."""
    found = []
    for part in text.split("\n\n"):
        parser = configparser.ConfigParser(interpolation=None)
        parser.optionxform = str  # type: ignore[assignment,method-assign]
        lines = [line for line in part.splitlines() if not line.startswith("#")]
        if any(line.startswith("[") for line in lines):
            parser.read_string("\n".join(lines))
            found += [(name, dict(parser[name])) for name in parser.sections()]
    return found


@pytest.mark.parametrize("rail", RAILS, ids=["with gateway", "without"])
def test_the_same_as_networkd(rail: dict[str, Any]) -> None:
    netplan = yaml.safe_load(render("netplan.yaml.j2", __roce_nic_rails=RAILS))["network"]
    assert (netplan["version"], netplan["renderer"]) == (2, "networkd")
    told = netplan["ethernets"][rail["name"]]
    networkd = sections(render("rail.network.j2", item={"rail": rail}))
    values = dict(networkd)
    assert str(told["mtu"]) == values["Link"]["MTUBytes"]
    assert told["addresses"] == [values["Address"]["Address"]]
    assert (told["dhcp4"], told["dhcp6"], told["accept-ra"], told["link-local"]) == (False, False, False, [])
    keys = {
        "to": "Destination",
        "via": "Gateway",
        "scope": "Scope",
        "from": "PreferredSource",
        "table": "Table",
    }
    routes = [{keys[key]: str(value) for key, value in route.items()} for route in told["routes"]]
    wanted = [section for name, section in networkd if name == "Route"]
    # The default route has no destination there, and all of them here.
    assert [{k: v for k, v in route.items() if v != "0.0.0.0/0"} for route in routes] == wanted
    (rule,) = told["routing-policy"]
    assert values["RoutingPolicyRule"] == {
        "From": rule["from"],
        "Table": str(rule["table"]),
        "Priority": str(rule["priority"]),
    }
