"""A network or a bridge that something else has."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from splitrail.lab import network
from splitrail.lab.run import LabError
from splitrail.lab.spec import parse


def _host(
    monkeypatch: pytest.MonkeyPatch, *, kind: str = "bridge", address: str = "", route: str = ""
) -> None:
    def ip(*argv: str) -> list[dict[str, Any]]:
        if argv[0] == "-details":
            return [{"ifname": "sr-try", "linkinfo": {"info_kind": kind}}]
        device, _, net = (address or "sr-try 10.66.0.1/24").partition(" ")
        if "address" in argv:
            local, _, length = net.partition("/")
            return [{"ifname": device, "addr_info": [{"local": local, "prefixlen": int(length)}]}]
        return [{"dst": "default", "dev": "eth0"}, {"dst": route or "10.1.0.0/16", "dev": "tun0"}]

    monkeypatch.setattr(network, "_ip", ip)


def test_own_bridge_is_no_clash(monkeypatch: pytest.MonkeyPatch, listing: dict[str, Any]) -> None:
    _host(monkeypatch)
    network.refuse_clash(parse(Path("/srv/try/hosts.yml"), listing))


@pytest.mark.parametrize(
    ("host", "said"),
    [
        (
            {"address": "eth0 10.66.0.7/16"},
            r"10\.66\.0\.0/24 overlaps 10\.66\.0\.0/16 on eth0; set lab_network",
        ),
        ({"route": "10.0.0.0/8"}, r"10\.66\.0\.0/24 overlaps 10\.0\.0\.0/8 on tun0; set lab_network"),
        ({"kind": "dummy"}, "sr-try exists and is no bridge; set another lab_name"),
        ({"address": "sr-try 10.9.0.1/24"}, r"sr-try carries 10\.9\.0\.0/24 already"),
    ],
)
def test_clash(
    monkeypatch: pytest.MonkeyPatch, listing: dict[str, Any], host: dict[str, str], said: str
) -> None:
    _host(monkeypatch, **host)
    with pytest.raises(LabError, match=rf"hosts\.yml: .*{said}"):
        network.refuse_clash(parse(Path("/srv/try/hosts.yml"), listing))
