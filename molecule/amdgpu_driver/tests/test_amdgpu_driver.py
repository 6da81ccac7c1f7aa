"""The driver of the release is installed from the right repository, built for this kernel, and runs."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest
from testinfra.host import Host

Verdicts = Callable[[str, Host], dict[str, Any]]


@pytest.mark.broken
def test_the_node_passed(host: Host, verdicts: Verdicts) -> None:
    verdict = verdicts("amdgpu_driver", host)
    assert verdict["ok"], [check for check in verdict["checks"] if not check["ok"]]


@pytest.mark.broken
def test_the_module_that_runs_is_the_one_on_disk(host: Host) -> None:
    loaded = host.file("/sys/module/amdgpu/srcversion").content_string.strip()
    assert host.check_output("/usr/local/sbin/modinfo --field srcversion amdgpu") == loaded


def test_the_driver_is_that_of_the_release(host: Host) -> None:
    package = host.package("amdgpu-dkms")
    assert package.is_installed
    assert package.version == "1:6.14.14.30100000-2204008.12"
    kernel = host.check_output("uname -r")
    assert (
        host.check_output("dkms status amdgpu") == f"amdgpu/6.14.14-2204008.12, {kernel}, x86_64: installed"
    )


def test_dpkg_has_nothing_left_to_do(host: Host) -> None:
    assert host.check_output("dpkg --audit") == ""


def test_amds_packages_go_before_newer_ones_of_the_distribution(host: Host) -> None:
    policy = host.check_output("apt-cache policy rocminfo")
    assert "Candidate: 1.0.0.70000\n" in policy
    assert " 99.0 500\n" in policy
    assert " 1.0.0.70000 600\n" in policy
    assert host.package("rocminfo").version == "1.0.0.70000"


def test_the_key_is_the_one_of_the_fingerprint_alone(host: Host) -> None:
    file = host.file("/etc/apt/keyrings/splitrail-amdgpu.gpg")
    assert f"{file.mode:o}" == "644"
    shown = host.check_output("gpg --show-keys --with-colons /etc/apt/keyrings/splitrail-amdgpu.gpg")
    prints = [line.split(":")[9] for line in shown.splitlines() if line.startswith("fpr:")]
    assert prints == [host.file("/srv/apt/good.fingerprint").content_string.strip()]


def test_no_proxy_and_no_password_stays(host: Host) -> None:
    assert host.run("grep -rs secret /etc/apt /etc/environment").stdout == ""


def test_containers_get_the_groups_of_the_devices(host: Host) -> None:
    wanted = {host.group("render").gid, host.group("video").gid}
    assert set(json.loads(host.file("/srv/gids.json").content_string)) == wanted


def test_the_user_is_in_the_groups(host: Host) -> None:
    assert {"render", "video"} <= set(host.user("splitrail").groups)
