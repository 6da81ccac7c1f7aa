"""The registry answers on its one address, comes back at boot, and keeps its images where it was told."""

from __future__ import annotations

import pytest
from testinfra.host import Host


@pytest.mark.broken
def test_it_listens_on_the_management_address_only(host: Host) -> None:
    listening = [line for line in host.socket.get_listening_sockets() if line.endswith(":5000")]
    address = host.interface("host0").addresses[0]
    assert listening == [f"tcp://{address}:5000"]


def test_it_starts_at_boot(host: Host) -> None:
    assert host.service("docker-registry").is_enabled


def test_the_probe_reached_its_own_folder(host: Host) -> None:
    assert host.file("/var/lib/registry-test/docker/registry/v2/repositories/splitrail/probe").is_directory
