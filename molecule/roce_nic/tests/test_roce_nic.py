"""The kernel says of each rail what the inventory declares, and systemd would bring it back at boot."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest
from testinfra.host import Host

Verdicts = Callable[[str, Host], dict[str, Any]]
RAILS = {
    "rail0": ("10.30.0.0/31", "10.30.0.1", "02:73:72:00:00:00"),
    "rail1": ("10.30.1.2/31", "10.30.1.3", "02:73:72:00:00:01"),
}
# Its cable is pulled at the end; rail0 was spoilt by hand and mended.
EACH = pytest.mark.parametrize("rail", ["rail0", pytest.param("rail1", marks=pytest.mark.broken)])


@pytest.mark.broken
def test_the_node_passed(host: Host, verdicts: Verdicts) -> None:
    verdict = verdicts("roce_nic", host)
    assert verdict["ok"], [check for check in verdict["checks"] if not check["ok"]]


@EACH
def test_address(host: Host, rail: str) -> None:
    (link,) = json.loads(host.check_output(f"ip -j -4 address show dev {rail}")) or [{}]
    shown = [f"{info['local']}/{info['prefixlen']}" for info in link.get("addr_info", [])]
    assert shown == [RAILS[rail][0]]


@EACH
def test_what_leaves_with_the_rails_address_leaves_by_the_rail(host: Host, rail: str) -> None:
    address, gateway, _ = RAILS[rail]
    done = host.run(f"ip -j route get 192.0.2.1 from {address.partition('/')[0]}")
    way = json.loads(done.stdout)[0] if done.succeeded else {}
    assert (way.get("dev"), way.get("gateway")) == (rail, gateway), done.stderr


def test_what_leaves_without_it_leaves_by_the_management_nic(host: Host) -> None:
    assert json.loads(host.check_output("ip -j route get 192.0.2.1"))[0]["dev"] == "host0"


@pytest.mark.parametrize("rail", sorted(RAILS))
def test_mtu(host: Host, rail: str) -> None:
    assert host.file(f"/sys/class/net/{rail}/mtu").content_string.strip() == "9000"


@pytest.mark.parametrize("rail", sorted(RAILS))
@pytest.mark.parametrize(("name", "value"), [("rp_filter", 2), ("arp_ignore", 1), ("arp_announce", 2)])
def test_sysctl_now_and_at_boot(host: Host, rail: str, name: str, value: int) -> None:
    assert host.sysctl(f"net.ipv4.conf.{rail}.{name}") == value
    line = f"net.ipv4.conf.{rail}.{name} = {value}"
    assert line in host.file("/etc/sysctl.d/90-splitrail-rails.conf").content_string.splitlines()


@pytest.mark.parametrize("rail", sorted(RAILS))
def test_systemd_manages_it(host: Host, rail: str) -> None:
    shown = host.check_output(f"networkctl --no-pager status {rail}")
    assert f"/etc/systemd/network/05-splitrail-{rail}.network" in shown
    link = host.file(f"/etc/systemd/network/05-splitrail-{rail}.link").content_string
    assert f"PermanentMACAddress={RAILS[rail][2]}\n" in link
    assert host.service("systemd-networkd").is_enabled
