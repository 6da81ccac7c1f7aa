"""The kernel says of each rail what the inventory declares, and systemd would bring it back at boot."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest
from testinfra.host import Host

Verdicts = Callable[[str, Host], dict[str, Any]]
RAILS = {
    "rail0": ("10.30.0.0/31", "10.30.0.1", "0000:0c:00.0"),
    "rail1": ("10.30.1.2/31", "10.30.1.3", "0000:8c:00.0"),
}
# At the end its cable is pulled, its PFC off, a value of its firmware another; rail0 was spoilt and mended.
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
    assert f"Path=pci-{RAILS[rail][2]}\n" in link
    assert host.service("systemd-networkd").is_enabled


@EACH
def test_pfc_and_trust(host: Host, rail: str) -> None:
    shown = host.check_output(f"mlnx_qos -i {rail}")
    assert "Priority trust state: dscp" in shown
    assert "enabled     0   0   0   1   0   0   0   0" in shown


@EACH
def test_the_next_boot_keeps_the_firmwares_values(host: Host, rail: str) -> None:
    shown = host.check_output(f"mstconfig -d {RAILS[rail][2]} q ATS_ENABLED PCI_WR_ORDERING MAX_ACC_OUT_READ")
    values = {line.split()[0]: line.split()[1] for line in shown.splitlines()[-3:]}
    assert values == {
        "ATS_ENABLED": "False(0)",
        "PCI_WR_ORDERING": "force_relax(1)",
        "MAX_ACC_OUT_READ": "44",
    }


@pytest.mark.parametrize("rail", sorted(RAILS))
def test_pcie(host: Host, rail: str) -> None:
    assert host.check_output(f"setpci -s {RAILS[rail][2]} CAP_EXP+8.w") == "5936"


@pytest.mark.parametrize("bridge", ["0000:00:01.1", "0000:80:01.1"])
def test_acs(host: Host, bridge: str) -> None:
    assert host.check_output(f"setpci -s {bridge} ECAP_ACS+6.w") == "0000"


@pytest.mark.parametrize("device", ["mlx5_0", "mlx5_1"])
def test_what_rdma_marks_its_packets_with(host: Host, device: str) -> None:
    assert host.check_output(f"cma_roce_tos -d {device}") == "106"
    assert host.file(f"/srv/sys/class/infiniband/{device}/tc/1/traffic_class").content_string.strip() == "106"


def test_ray_waits_for_it_at_boot(host: Host) -> None:
    assert host.service("splitrail-roce").is_enabled
    shown = host.check_output("systemctl show splitrail-roce --property=RequiredBy,Before")
    assert "ray.service" in shown.partition("RequiredBy=")[2].partition("\n")[0]
    assert "ray.service" in shown.partition("Before=")[2].partition("\n")[0]


def test_memlock(host: Host) -> None:
    assert host.check_output("systemctl show --property=DefaultLimitMEMLOCK --value") == "4194304"
    assert host.check_output("ulimit -H -l") == "4096"


def test_the_stack_is_installed(host: Host) -> None:
    assert host.package("rdma-core").is_installed
    assert host.package("ibverbs-providers").is_installed
