"""The command lines of a container node, and the name servers it gets."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from splitrail.lab.container import mounts_of, nspawn_command, unit_command
from splitrail.lab.network import resolv_conf
from splitrail.lab.run import LabError
from splitrail.lab.spec import parse


def test_command_line(listing: dict[str, Any]) -> None:
    lab = parse(Path("/srv/try/hosts.yml"), listing)
    folder = Path("/var/lib/splitrail/lab/try/n1")
    argv = nspawn_command(
        lab, lab.nodes[0], folder, [(Path("/a:b"), Path("/c"), True), (Path("/d"), Path("/d"), False)]
    )
    assert argv[0] == "systemd-nspawn"
    assert argv[-2:] == ["--bind=/a\\:b:/c", "--bind-ro=/d:/d"]
    assert {
        "--machine=try.n1",
        "--directory=/var/lib/splitrail/lab/try/n1/root",
        "--hostname=n1",
        "--network-bridge=sr-try",
        "--tmpfs=/dev/shm:mode=1777,size=4096m",
        "--register=no",
        "--link-journal=no",
    } <= set(argv)


def test_mounts_by_group(listing: dict[str, Any]) -> None:
    for host in listing["_meta"]["hostvars"].values():
        host["lab_mounts"] = [
            {"source": "images", "target": "/images", "writable_on": ["head"]},
            {"source": "/data", "target": "/data", "groups": ["workers"], "writable_on": ["all"]},
        ]
    lab = parse(Path("/srv/try/hosts.yml"), listing)
    cache, folder, wheels = Path("/cache"), Path("/state"), Path("/wheels")
    own = (folder / "containers", Path("/var/lib/containers"), True)
    head, decode = (mounts_of(node, lab.mounts, folder, cache, [wheels]) for node in lab.nodes)
    assert head == [own, (cache / "images", Path("/images"), True), (wheels, wheels, False)]
    assert decode == [
        own,
        (cache / "images", Path("/images"), False),
        (Path("/data"), Path("/data"), True),
        (wheels, wheels, False),
    ]


def test_unit_restarts_on_reboot_only() -> None:
    argv = unit_command("u.service", ["systemd-nspawn", "--boot"], Path("/log"), {"A": "1"})
    assert argv[:2] == ["systemd-run", "--unit=u.service"]
    assert argv[-3:] == ["--setenv=A=1", "systemd-nspawn", "--boot"]
    assert "--property=RestartForceExitStatus=133" in argv
    assert "--property=Delegate=yes" in argv
    assert not any(word.startswith("--property=Restart=") for word in argv)


def test_name_servers_behind_a_local_stub(tmp_path: Path) -> None:
    etc, uplink = tmp_path / "etc", tmp_path / "uplink"
    etc.write_text("nameserver 127.0.0.53\noptions edns0\n")
    with pytest.raises(LabError, match="no name server but on this host's loopback"):
        resolv_conf(etc, uplink)
    uplink.write_text("nameserver 10.1.1.1\nnameserver ::1\nsearch a.example\n")
    assert resolv_conf(etc, uplink) == "nameserver 10.1.1.1\nsearch a.example\n"
    etc.write_text("nameserver 10.2.2.2\n")
    assert resolv_conf(etc, uplink) == "nameserver 10.2.2.2\n"
