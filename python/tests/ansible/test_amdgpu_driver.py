"""Every check of splitrail_amdgpu_driver, passing and failing, and when a reboot is asked for."""

from __future__ import annotations

import grp
import json
import os
import pwd
import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from splitrail.ansible.module_utils.splitrail_amdgpu import Node
from splitrail.ansible.module_utils.splitrail_packages import Done
from splitrail.ansible.modules.splitrail_amdgpu_driver import Driver
from splitrail.release_rules import tables

KERNEL = "6.8.0-79-generic"
SRCVERSION = "0123456789ABCDEF0123456"
BUILT = f"amdgpu/6.14.14-2204008.24.04, {KERNEL}, x86_64: installed (Original modules exist)"


class Host:
    """A node with the driver of ROCm 7.0.0, as it should be."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.dkms = Done(0, BUILT)
        self.modinfo = Done(0, f"{SRCVERSION}\n")
        self.packages = {
            "amdgpu-dkms": ("1:6.14.14.30100000-2204008.24.04", "installed"),
            f"linux-headers-{KERNEL}": ("1", "installed"),
            f"linux-modules-extra-{KERNEL}": ("1", "installed"),
            "rocminfo": ("1", "installed"),
        }
        self.gid = next(group.gr_gid for group in grp.getgrall() if group.gr_gid)
        for path, text in (
            ("etc/os-release", 'ID=ubuntu\nVERSION_ID="24.04"\nVERSION_CODENAME=noble\n'),
            ("sys/module/amdgpu/srcversion", f"{SRCVERSION}\n"),
            ("proc/sys/kernel/random/boot_id", "boot-2\n"),
            ("dev/kfd", ""),
            ("dev/dri/renderD128", ""),
            ("dev/dri/renderD129", ""),
        ):
            (root / path).parent.mkdir(parents=True, exist_ok=True)
            (root / path).write_text(text)
        for device in (root / "dev").rglob("*"):
            if device.is_file():
                self.own(device)

    def own(self, path: Path, gid: int | None = None, mode: int = 0o660) -> None:
        path.chmod(mode)
        os.chown(path, -1, self.gid if gid is None else gid)

    def run(self, _environment: dict[str, str], *command: str, timeout_s: int = 0) -> Done:  # noqa: ARG002
        if command[0] == "dpkg-query":
            return Done(
                0, "\n".join("\t".join((n, *self.packages[n])) for n in command if n in self.packages)
            )
        return {"dkms": self.dkms, "modinfo": self.modinfo}[command[0]]

    def driver(self, **changed: Any) -> Driver:
        want = {
            "package": "1:6.14.14.30100000-2204008",
            "suffix": "",
            "dkms": "6.14.14-2204008",
            "tools": ["rocminfo"],
            "users": [],
            "groups": ["render", "video"],
            "state_file": str(self.root / "state.json"),
        }
        return Driver(Node(self.root, KERNEL, {}, self.run), {**want, **changed})

    def failed(self, **changed: Any) -> list[tuple[str, str]]:
        return [
            (made["name"], made["measured"]) for made in self.driver(**changed).checks() if not made["ok"]
        ]


@pytest.fixture
def host(tmp_path: Path) -> Host:
    if os.geteuid():
        pytest.skip("only root may give files to a group that it is not in")
    return Host(tmp_path)


def test_a_good_node(host: Host) -> None:
    assert host.failed() == []
    driver = host.driver()
    assert (driver.reboot, driver.gids) == ("none", [host.gid])


@pytest.mark.parametrize("name", ["amdgpu-dkms", f"linux-headers-{KERNEL}", "rocminfo"])
def test_a_package_that_is_gone_or_not_whole(host: Host, name: str) -> None:
    version, _ = host.packages[name]
    host.packages[name] = (version, "half-configured")
    assert host.failed() == [("amdgpu_driver.package", f"{version}, half-configured")]
    del host.packages[name]
    assert host.failed() == [("amdgpu_driver.package", "not installed")]


def test_another_version(host: Host) -> None:
    host.packages["amdgpu-dkms"] = ("1:6.14.14.30100100-2212064.24.04", "installed")
    assert host.failed() == [("amdgpu_driver.package", "1:6.14.14.30100100-2212064.24.04, installed")]


@pytest.mark.parametrize(
    ("answer", "measured"),
    [
        (Done(0, ""), "no build"),
        (Done(0, BUILT.replace("installed", "built")),
         f"6.14.14-2204008.24.04 built for {KERNEL} (Original modules exist)"),
        (Done(0, BUILT.replace(KERNEL, "6.8.0-60-generic")),
         "6.14.14-2204008.24.04 installed for 6.8.0-60-generic (Original modules exist)"),
        (Done(0, "amdgpu/6.14.14-2204008.24.04: added"), "6.14.14-2204008.24.04 added"),
        (Done(0, BUILT.replace("2204008", "2212064")),
         f"6.14.14-2212064.24.04 installed for {KERNEL} (Original modules exist)"),
        (Done(0, BUILT.partition(" (")[0] + " (WARNING! Diff between built and installed module!)"),
         f"6.14.14-2204008.24.04 installed for {KERNEL} (WARNING! Diff between built and installed module!)"),
        (Done(127, "", "dkms is not installed"), "could not be checked: dkms is not installed"),
    ],
)  # fmt: skip
def test_dkms_has_not_installed_it_for_this_kernel(host: Host, answer: Done, measured: str) -> None:
    host.dkms = answer
    assert host.failed() == [("amdgpu_driver.dkms", measured)]


def test_a_newer_module_on_disk_asks_for_a_reboot_once(host: Host) -> None:
    host.modinfo = Done(0, "FEDCBA9876543210FEDCBA9\n")
    driver = host.driver()
    (made,) = (made for made in driver.checks() if not made["ok"])
    assert (made["measured"], made["required"]) == (
        f"srcversion {SRCVERSION} loaded",
        "srcversion FEDCBA9876543210FEDCBA9 loaded",
    )
    assert "nothing reboots it unasked" in made["hint"]
    assert driver.reboot == "needed"
    # Asked for in this boot: it has not happened yet.
    state = host.root / "state.json"
    state.write_text(json.dumps({"srcversion": "FEDCBA9876543210FEDCBA9", "boot_id": "boot-2"}))
    assert host.driver().reboot == "needed"
    # Asked for in the boot before, and still the old module.
    state.write_text(json.dumps({"srcversion": "FEDCBA9876543210FEDCBA9", "boot_id": "boot-1"}))
    assert host.driver().reboot == "vain"
    assert "A reboot did not bring it" in host.driver().module()["hint"]
    # For another module it was not asked yet.
    state.write_text(json.dumps({"srcversion": "1111", "boot_id": "boot-1"}))
    assert host.driver().reboot == "needed"
    state.write_text("{half")
    assert host.driver().reboot == "needed"


def test_a_module_that_is_not_loaded_or_not_there(host: Host) -> None:
    (host.root / "sys/module/amdgpu/srcversion").unlink()
    assert host.driver().reboot == "needed"  # loaded, and of a build that says nothing of itself
    (host.root / "sys/module/amdgpu").rmdir()
    assert host.failed() == [("amdgpu_driver.module", "not loaded")]
    assert host.driver().reboot == "none"
    host.modinfo = Done(1, "", "modinfo: ERROR: Module amdgpu not found.")
    assert host.failed() == [
        ("amdgpu_driver.module", f"could not be checked: no module for {KERNEL} on disk")
    ]


@pytest.mark.parametrize(
    ("gid", "mode", "measured"), [(0, 0o660, "group 0, mode 660"), (None, 0o600, "group {gid}, mode 600")]
)
def test_a_device_that_no_group_may_use(host: Host, gid: int | None, mode: int, measured: str) -> None:
    host.own(host.root / "dev/kfd", gid, mode)
    assert host.failed() == [("amdgpu_driver.device", measured.format(gid=host.gid))]


def test_devices_that_are_not_there(host: Host) -> None:
    for path in (host.root / "dev/dri").iterdir():
        path.unlink()
    assert host.failed() == [("amdgpu_driver.device", "not there")]
    assert "a reboot may be due" in host.driver().device_checks()[1]["hint"]


def test_users(host: Host) -> None:
    me = pwd.getpwuid(os.geteuid()).pw_name
    mine = grp.getgrgid(pwd.getpwnam(me).pw_gid).gr_name
    assert host.failed(users=[me], groups=[mine]) == []
    assert host.failed(users=[me, "nobody-of-that-name"], groups=["no-such-group"]) == [
        ("amdgpu_driver.user", "not in no-such-group"),
        ("amdgpu_driver.user", "no such user"),
    ]


def test_the_inventory_names_the_driver_as_dkms_does() -> None:
    """driver.yml derives DKMS' name from the package's; the table has both."""
    root = Path(__file__).parents[3]
    line = yaml.safe_load((root / "inventories/mi325x/group_vars/all/driver.yml").read_text())[
        "amdgpu_driver_dkms"
    ]
    pattern, replacement = re.findall(r"'([^']*)'", line)
    for pair in tables()["rocm"]["versions"].values():
        assert (
            re.sub(pattern.replace("\\\\", "\\"), replacement.replace("\\\\", "\\"), pair["package"])
            == pair["dkms"]
        )
