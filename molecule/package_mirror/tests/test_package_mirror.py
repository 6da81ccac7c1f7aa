"""A node installs from the bundle, from nothing else, and what it used before is kept aside."""

from __future__ import annotations

import pytest
from testinfra.host import Host


@pytest.mark.broken("mol-prefill")
def test_apt_looks_at_the_bundle_alone(host: Host) -> None:
    # All that is declared, fetched or not.
    declared = host.check_output("find /etc/apt -name '*.list' -o -name '*.sources' | grep -v aside").split()
    assert declared == ["/etc/apt/sources.list.d/splitrail-bundle.sources"]
    sites = set(host.check_output("apt-get indextargets --format '$(SITE)'").split())
    assert len(sites) == 1
    assert sites.pop().endswith(":8090/apt")


def test_apt_installs_what_a_package_needs_from_the_bundle(host: Host) -> None:
    said = host.check_output("apt-get --simulate --no-install-recommends install tool")
    assert "Inst library" in said
    assert "Inst tool" in said


def test_pip_looks_at_the_bundle(host: Host) -> None:
    assert ":8090/simple" in host.file("/etc/pip.conf").content_string


def test_former_sources_are_kept(host: Host) -> None:
    assert host.file("/etc/apt/splitrail-aside").listdir()


def test_only_the_head_serves(host: Host) -> None:
    serves = host.check_output("hostname") == "mol-head"
    assert host.file("/etc/systemd/system/splitrail-bundle.service").exists == serves
    if serves:
        service = host.service("splitrail-bundle")
        assert service.is_running
        assert service.is_enabled
        listening = [line for line in host.socket.get_listening_sockets() if line.endswith(":8090")]
        assert listening == [f"tcp://{host.interface('host0').addresses[0]}:8090"]


def test_the_server_may_write_nothing(host: Host) -> None:
    if host.check_output("hostname") == "mol-head":
        pid = host.check_output("systemctl show --property MainPID --value splitrail-bundle")
        assert host.check_output("ps -o user= -p %s", pid) != "root"
