"""Every check of splitrail_roce_nic, passing and failing, and what it changes, on a node made of answers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from splitrail.ansible.modules import splitrail_roce_nic as roce_nic
from splitrail.ansible.modules.splitrail_roce_nic import NETWORKD, Node, Unreadable, measure, rails_of
from splitrail.rails import parse

RAILS = parse(
    [
        {"rail": 0, "pci": "0000:0c:00.0", "address": "10.30.0.0/31", "gateway": "10.30.0.1"},
        {"rail": 1, "mac": "02:00:00:00:00:01", "address": "10.30.1.2/24"},
    ]
)
SYSCTL = {"rp_filter": 2}


class Host:
    """What `ip` answers, and what networkd makes of it when it is told to."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.calls: list[tuple[str, ...]] = []
        self.links: list[dict[str, Any]] = []
        self.rules: list[dict[str, Any]] = [{"priority": 0, "src": "all", "table": "255"}]
        self.routes: list[dict[str, Any]] = [{"dst": "default", "gateway": "10.0.0.1", "dev": "host0"}]
        self.after: Any = None  # called when networkd reconfigures
        for rail, gateway, pci in (("rail0", "10.30.0.1", "0000:0c:00.0"), ("rail1", "", "")):
            declared = RAILS[int(rail[-1])]
            ip, _, prefix = declared["address"].partition("/")
            self.links.append(
                {
                    "ifname": rail,
                    "flags": ["BROADCAST", "UP", "LOWER_UP"],
                    "mtu": 9000,
                    "address": f"02:00:00:00:00:0{rail[-1]}",
                    "addr_info": [
                        {"family": "inet", "local": ip, "prefixlen": int(prefix)},
                        {"family": "inet6", "local": "fe80::1", "prefixlen": 64},
                    ],
                }
            )
            self.rules.append({"priority": declared["table"], "src": ip, "table": str(declared["table"])})
            way = {"dev": rail, "table": str(declared["table"])}
            self.routes.append({"dst": declared["network"], "scope": "253", **way})
            if gateway:
                self.routes.append({"dst": "default", "gateway": gateway, **way})
            if pci:
                (root / "sys/devices" / pci).mkdir(parents=True)
                (root / "sys/class/net" / rail).mkdir(parents=True)
                (root / "sys/class/net" / rail / "device").symlink_to(root / "sys/devices" / pci)
            setting = root / f"proc/sys/net/ipv4/conf/{rail}/rp_filter"
            setting.parent.mkdir(parents=True)
            setting.write_text("2\n")

    def link(self, name: str) -> dict[str, Any]:
        return next(link for link in self.links if link["ifname"] == name)

    def run(self, *command: str) -> str:
        self.calls.append(command)
        if command[0] == "networkctl":
            if command[1] == "reconfigure" and self.after:
                self.after()
            return ""
        answers = {"address": self.links, "rule": self.rules, "route": self.routes}
        return json.dumps(answers[command[4]])

    def configured(self) -> list[tuple[str, ...]]:
        return [call for call in self.calls if call[0] == "networkctl"]


@pytest.fixture
def host(tmp_path: Path) -> Host:
    return Host(tmp_path)


@pytest.fixture
def node(host: Host) -> Node:
    return Node(root=host.root, run=host.run)


def failed(node: Node) -> dict[tuple[str, str], Any]:
    return {
        (c["name"], c["subject"]): c["measured"] for c in measure(node, RAILS, 9000, SYSCTL) if not c["ok"]
    }


def wanted(**more: Any) -> dict[str, Any]:
    return {"rails": RAILS, "mtu": 9000, "sysctl": SYSCTL, "reload": False, "timeout_s": 0, **more}


def test_a_declared_node_passes_every_check(node: Node) -> None:
    checks = measure(node, RAILS, 9000, SYSCTL)
    assert failed(node) == {}
    assert [check["name"].removeprefix("roce_nic.") for check in checks] == [
        *("nic", "link", "mtu", "address", "rule", "route", "sysctl"),
    ] * len(RAILS)
    assert all(check["hint"] for check in checks)


def test_a_nic_that_is_not_there(host: Host, node: Node) -> None:
    (host.root / "sys/class/net/rail0/device").unlink()
    # Nothing else is said of rail0: what bears its name is another NIC.
    assert failed(node) == {("roce_nic.nic", "rail0 0000:0c:00.0"): "no such NIC"}


def test_a_nic_that_has_not_got_its_name_yet(host: Host, node: Node) -> None:
    host.link("rail1")["ifname"] = "enp42s0"
    checks = measure(node, RAILS, 9000, SYSCTL)
    (nic,) = [check for check in checks if not check["ok"]]
    assert (nic["subject"], nic["measured"], nic["required"]) == (
        "rail1 02:00:00:00:00:01",
        "enp42s0",
        "rail1",
    )
    assert "Reboot the node" in nic["hint"]


def test_a_vlan_over_a_rail_does_not_pass_for_it(host: Host, node: Node) -> None:
    host.links.insert(0, {**host.link("rail1"), "ifname": "a-vlan"})
    assert failed(node) == {}


def test_two_swapped_rails_are_found(host: Host, node: Node) -> None:
    host.link("rail1")["address"] = "02:00:00:00:00:09"
    assert failed(node) == {("roce_nic.nic", "rail1 02:00:00:00:00:01"): "no such NIC"}


def test_the_burnt_in_address_counts(host: Host, node: Node) -> None:
    host.link("rail1").update(address="02:00:00:00:00:09", permaddr="02:00:00:00:00:01")
    assert failed(node) == {}


def test_no_carrier(host: Host, node: Node) -> None:
    host.link("rail0")["flags"] = ["NO-CARRIER", "BROADCAST", "UP"]
    assert failed(node) == {("roce_nic.link", "rail0"): "no carrier"}


def test_mtu(host: Host, node: Node) -> None:
    host.link("rail0")["mtu"] = 1500
    assert failed(node) == {("roce_nic.mtu", "rail0"): 1500}


@pytest.mark.parametrize(
    ("found", "measured"),
    [
        ([], "none"),
        ([("10.30.0.0", 24)], "10.30.0.0/24"),
        ([("10.30.0.0", 31), ("10.9.9.9", 24)], "10.30.0.0/31, 10.9.9.9/24"),
    ],
)
def test_address(host: Host, node: Node, found: list[tuple[str, int]], measured: str) -> None:
    host.link("rail0")["addr_info"] = [
        {"family": "inet", "local": local, "prefixlen": length} for local, length in found
    ]
    assert failed(node) == {("roce_nic.address", "rail0"): measured}


def test_a_rule_that_is_missing_or_leads_elsewhere(host: Host, node: Node) -> None:
    rule = next(rule for rule in host.rules if rule["src"] == "10.30.0.0")
    rule["table"] = "254"
    assert failed(node) == {("roce_nic.rule", "rail0 from 10.30.0.0"): "254"}
    host.rules.remove(rule)
    assert failed(node) == {("roce_nic.rule", "rail0 from 10.30.0.0"): "none"}
    # A rule for a whole network is another rule.
    host.rules.append({**rule, "table": "100", "srclen": 24})
    assert failed(node) == {("roce_nic.rule", "rail0 from 10.30.0.0"): "none"}


def test_routes_that_are_missing_or_lead_elsewhere(host: Host, node: Node) -> None:
    default = next(route for route in host.routes if route.get("gateway") == "10.30.0.1")
    default["gateway"] = "10.30.0.9"
    wrong = {"10.30.0.0/31": "link", "default": "10.30.0.9"}
    assert failed(node) == {("roce_nic.route", "rail0 table 100"): wrong}
    host.routes.remove(default)
    assert failed(node) == {("roce_nic.route", "rail0 table 100"): {"10.30.0.0/31": "link"}}


def test_sysctl(host: Host, node: Node) -> None:
    file = host.root / "proc/sys/net/ipv4/conf/rail0/rp_filter"
    file.write_text("0\n")
    assert failed(node) == {("roce_nic.sysctl", "net.ipv4.conf.rail0.rp_filter"): "0"}
    file.unlink()
    assert failed(node) == {("roce_nic.sysctl", "net.ipv4.conf.rail0.rp_filter"): "no such setting"}


def test_only_the_rail_that_differs_is_reconfigured(host: Host, node: Node) -> None:
    host.link("rail0")["mtu"] = 1500
    host.after = lambda: host.link("rail0").update(mtu=9000)
    checks = roce_nic.apply(node, wanted(), measure(node, RAILS, 9000, SYSCTL))
    assert host.configured() == [("networkctl", "reconfigure", "rail0")]
    assert all(check["ok"] for check in checks)


def test_new_files_are_loaded_for_every_rail_that_is_here(host: Host, node: Node) -> None:
    host.link("rail1")["ifname"] = "enp42s0"
    roce_nic.apply(node, wanted(reload=True), measure(node, RAILS, 9000, SYSCTL))
    assert host.configured() == [("networkctl", "reload"), ("networkctl", "reconfigure", "rail0")]


def test_a_sysctl_is_set_without_networkd(host: Host, node: Node) -> None:
    (host.root / "proc/sys/net/ipv4/conf/rail1/rp_filter").write_text("0\n")
    checks = roce_nic.apply(node, wanted(), measure(node, RAILS, 9000, SYSCTL))
    assert host.configured() == []
    assert all(check["ok"] for check in checks)


def test_what_networkd_does_not_mend_stays_a_finding(host: Host, node: Node) -> None:
    host.link("rail0")["mtu"] = 1500
    checks = roce_nic.apply(node, wanted(), measure(node, RAILS, 9000, SYSCTL))
    assert rails_of(checks, NETWORKD) == {"rail0"}


def test_a_rail_without_carrier_is_not_waited_for(host: Host, node: Node) -> None:
    host.link("rail0").update(flags=["UP"], addr_info=[])
    (host.root / "proc/sys/net/ipv4/conf/rail1/rp_filter").write_text("0\n")
    # Would take ten minutes if it were.
    checks = roce_nic.apply(node, wanted(timeout_s=600), measure(node, RAILS, 9000, SYSCTL))
    assert host.configured() == []
    assert rails_of(checks, ("roce_nic.link",)) == {"rail0"}


def test_an_answer_that_is_no_json_is_named(node: Node) -> None:
    node.run = lambda *_: "Object is a mystery"
    with pytest.raises(Unreadable, match="ip address gave no JSON"):
        node.read()


def test_a_command_that_fails_is_named() -> None:
    with pytest.raises(Unreadable, match=r"ip -j link show no-such-nic: .*does not exist"):
        roce_nic.run("ip", "-j", "link", "show", "no-such-nic")
    with pytest.raises(Unreadable, match="no-such-command"):
        roce_nic.run("no-such-command")
