"""The node has what was declared, and still had it after the reboot that converge made."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from testinfra.host import Host

Verdicts = Callable[[str, Host], dict[str, Any]]


@pytest.mark.broken
def test_the_host_passed(host: Host, verdicts: Verdicts) -> None:
    verdict = verdicts("host_tuning", host)
    assert verdict["ok"], [check for check in verdict["checks"] if not check["ok"]]


@pytest.mark.broken
def test_the_kernel_runs_with_the_options(host: Host) -> None:
    words = host.file("/proc/cmdline").content_string.split()
    assert {"pci=realloc=off", "pci=bfsort", "iommu=pt", "quiet"} <= set(words)


def test_no_request_for_a_reboot_is_left_over(host: Host) -> None:
    state = host.file("/var/lib/splitrail/host-tuning-reboot.json")
    # On the broken node it stands: it is what keeps the role from asking again.
    assert state.exists == host.file("/var/lib/standin/ignore-menu").exists


@pytest.mark.parametrize(
    ("name", "value"), [("net.core.somaxconn", 8192), ("net.ipv4.tcp_rmem", "4096\t87380\t16777216")]
)
def test_sysctl_now_and_at_boot(host: Host, name: str, value: int | str) -> None:
    assert host.sysctl(name) == value
    assert name in host.file("/etc/sysctl.d/90-splitrail-host.conf").content_string


@pytest.mark.parametrize("cpu", [0, 1])
def test_idle_states_and_governor_are_set_at_boot(host: Host, cpu: int) -> None:
    cpus = "/sys/devices/system/cpu"
    disabled = [
        host.file(f"{cpus}/cpu{cpu}/cpuidle/state{n}/disable").content_string.strip() for n in range(3)
    ]
    assert disabled == ["0", "0", "1"]
    governor = host.file(f"{cpus}/cpufreq/policy{cpu}/scaling_governor").content_string.strip()
    assert governor == "performance"
    assert host.service("splitrail-host-tuning").is_enabled


def test_shared_memory(host: Host) -> None:
    size = int(host.check_output("df --output=size -B1M /dev/shm | tail -1"))
    assert size == 2560  # noqa: PLR2004  2.5 GiB


def test_locked_memory(host: Host) -> None:
    limit = host.check_output("systemctl show --property DefaultLimitMEMLOCK --value")
    assert int(limit) == 4096 * 1024
    # A unit that is started now gets it.
    started = host.check_output("systemd-run --quiet --pipe --wait sh -c 'ulimit -l'")
    assert int(started) == 4096  # noqa: PLR2004  KiB


def test_clock(host: Host) -> None:
    assert host.service("chrony").is_running
    assert host.service("chrony").is_enabled
    assert host.check_output("chronyc -c tracking").split(",")[13] == "Normal"


def test_packages_are_held(host: Host) -> None:
    assert host.check_output("apt-mark showhold") == "libc-bin"


def test_the_firmware_is_reported(host: Host, verdicts: Verdicts) -> None:
    checks = {check["name"]: check for check in verdicts("host_tuning", host)["checks"]}
    unseen = checks["host_tuning.firmware_unseen"]
    assert unseen["ok"]
    assert "Determinism slider" in unseen["required"]
    # The node has no GPU: said, and no fault where it is not required.
    assert checks["host_tuning.firmware_large_bar"]["measured"].startswith("could not be read")
    assert checks["host_tuning.firmware_large_bar"]["ok"]
