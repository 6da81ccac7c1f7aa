"""Every check of splitrail_amdgpu_preflight, passing and failing, on a node made of files and answers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from splitrail.ansible.module_utils.splitrail_amdgpu import Node
from splitrail.ansible.module_utils.splitrail_packages import Done
from splitrail.ansible.modules import splitrail_amdgpu_preflight as preflight

KERNEL = "6.8.0-79-generic"
POLICY = "{name}:\n  Installed: (none)\n  Candidate: {candidate}\n  Version table:\n"


class Host:
    """A node's files and what its programs answer."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.packages: dict[str, tuple[str, str]] = {}
        self.offers: dict[str, str] = {f"linux-headers-{KERNEL}": "1", f"linux-modules-extra-{KERNEL}": "1"}
        self.after_update: dict[str, str] = {}
        self.mokutil = Done(0, "/MOK.der is already enrolled")
        self.environment: dict[str, str] = {}
        self.kernel = KERNEL
        self.system("ubuntu", "24.04", "noble")
        for folder in ("etc/apt/sources.list.d", "srv/amdgpu/dists/noble", "var", "boot"):
            (root / folder).mkdir(parents=True)
        (root / "srv/amdgpu/dists/noble/Release").write_text("Origin: repo.radeon.com\nSuite: noble\n")

    def system(self, name: str, version: str, codename: str) -> None:
        (self.root / "etc").mkdir(exist_ok=True)
        (self.root / "etc/os-release").write_text(
            f'ID={name}\nVERSION_ID="{version}"\nVERSION_CODENAME={codename}\n'
        )

    def run(self, _environment: dict[str, str], *command: str, timeout_s: int = 0) -> Done:  # noqa: ARG002
        if command[0] == "dpkg-query":
            names = [one for one in command[1:] if not one.startswith("--")] or list(self.packages)
            lines = ["\t".join((name, *self.packages[name])) for name in names if name in self.packages]
            return Done(0, "\n".join(lines))
        if command[0] == "apt-cache":
            private = any(one.startswith("--option=Dir::State::lists") for one in command)
            known = self.after_update if private else self.offers
            return Done(0, POLICY.format(name=command[-1], candidate=known.get(command[-1], "(none)")))
        if command[0] == "mokutil":
            return self.mokutil
        assert command[0] == "apt-get", command
        assert any(one.startswith("--option=Dir::State::lists") for one in command), "the node's own index"
        return Done(0, "")

    def want(self, **changed: Any) -> dict[str, Any]:
        url = (self.root / "srv/amdgpu").as_uri()
        return {
            "driver": "30.10",
            "package": "1:6.14.14.30100000-2204008",
            "suffix": "",
            "suite": "",
            "repositories": [{"name": "amdgpu", "url": url}],
            "sources": "/etc/apt/sources.list.d/splitrail-amdgpu.sources",
            "kernels": {"ubuntu-22.04": ["5.15", "6.8"], "ubuntu-24.04": ["6.8", "6.14"]},
            "disk": {"/var": 0.001},
            "ofed": "",
            "timeout_s": 1,
            **changed,
        }

    def measure(self, **changed: Any) -> dict[str, Any]:
        node = Node(self.root, self.kernel, self.environment, self.run)
        return preflight.measure(node, self.want(**changed))

    def failed(self, **changed: Any) -> list[dict[str, Any]]:
        return [made for made in self.measure(**changed)["checks"] if not made["ok"]]

    def efi(self, name: str, value: int) -> None:
        folder = self.root / preflight.EFI_VARIABLES
        folder.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(bytes([6, 0, 0, 0, value]))

    def file(self, path: str, text: str = "") -> None:
        (self.root / path).parent.mkdir(parents=True, exist_ok=True)
        (self.root / path).write_text(text)


@pytest.fixture
def host(tmp_path: Path) -> Host:
    return Host(tmp_path)


def test_a_good_node(host: Host) -> None:
    found = host.measure()
    assert [made for made in found["checks"] if not made["ok"]] == []
    assert found["suite"] == "noble"
    assert found["packages"] == [
        f"linux-headers-{KERNEL}",
        f"linux-modules-extra-{KERNEL}",
        "amdgpu-dkms=1:6.14.14.30100000-2204008.24.04",
    ]
    assert len({made["name"] for made in found["checks"]}) == 7


def test_debian_has_no_extra_modules_and_takes_ubuntus_packages(host: Host) -> None:
    host.system("debian", "12", "bookworm")
    host.kernel = "6.1.0-39-amd64"
    host.offers = {"linux-headers-6.1.0-39-amd64": "1"}
    found = host.measure(suite="jammy", suffix="22.04", kernels={"debian-12": ["6.1"]})
    assert found["packages"] == [
        "linux-headers-6.1.0-39-amd64",
        "amdgpu-dkms=1:6.14.14.30100000-2204008.22.04",
    ]
    assert found["suite"] == "jammy"


@pytest.mark.parametrize(
    ("system", "kernel"),
    [
        (("ubuntu", "24.04"), "6.17.0-14-generic"),
        (("ubuntu", "24.04"), "6.80.0-1-generic"),
        (("ubuntu", "22.04"), "6.14.0-29-generic"),
        (("ubuntu", "25.10"), KERNEL),
        (("debian", "12"), KERNEL),
        (("rocky", "9"), KERNEL),
    ],
)
def test_a_kernel_or_system_that_is_not_in_the_table(
    host: Host, system: tuple[str, str], kernel: str
) -> None:
    host.system(*system, "x")
    host.kernel = kernel
    (made,) = (made for made in host.failed() if made["name"] == "amdgpu_driver.platform")
    assert made["measured"] == f"{'-'.join(system)}, kernel {kernel}"
    assert made["required"] == "ubuntu-22.04: 5.15, 6.8; ubuntu-24.04: 6.8, 6.14"
    assert "driver 30.10 supports" in made["hint"]


@pytest.mark.parametrize("gone", [f"linux-headers-{KERNEL}", f"linux-modules-extra-{KERNEL}"])
def test_a_kernel_whose_packages_are_gone(host: Host, gone: str) -> None:
    host.offers.pop(gone)
    host.after_update = dict(host.offers)
    (made,) = host.failed()
    assert (made["name"], made["subject"]) == ("amdgpu_driver.kernel_packages", gone)
    assert made["measured"] == "neither installed nor offered by APT"
    # It is there after all: the index was old.
    host.after_update[gone] = "1"
    assert host.failed() == []
    # Or it is installed.
    host.after_update = {}
    host.packages[gone] = ("1", "installed")
    host.offers = {f"linux-{kind}-{KERNEL}": "1" for kind in ("headers", "modules-extra")}
    host.offers.pop(gone)
    assert host.failed() == []


def test_secure_boot(host: Host) -> None:
    assert host.failed() == []  # no EFI at all
    host.efi(preflight.SECURE_BOOT, 0)
    assert host.failed() == []
    host.efi(preflight.SECURE_BOOT, 1)
    (made,) = host.failed()
    assert made["name"] == "amdgpu_driver.secure_boot"
    assert made["measured"] == "on, and this machine has no key that DKMS signs with"
    assert "mokutil --import" in made["hint"]
    # shim may have been told not to ask.
    host.efi(preflight.SHIM_VALIDATION, 1)
    assert host.failed() == []
    host.efi(preflight.SHIM_VALIDATION, 0)
    host.file("var/lib/shim-signed/mok/MOK.der")
    assert host.failed() == []  # enrolled
    host.mokutil = Done(1, "MOK.der is not enrolled")
    (made,) = host.failed()
    assert made["measured"].endswith("MOK.der is not enrolled")
    host.mokutil = Done(127, "", "mokutil is not installed")
    (made,) = host.failed()
    assert made["measured"] == "could not be checked: Secure Boot is on and mokutil is not installed"


@pytest.mark.parametrize(
    ("state", "ok"), [(None, False), ("half-configured", False), ("unpacked", False), ("installed", True)]
)
def test_ofed_comes_first(host: Host, state: str | None, ok: bool) -> None:
    if state:
        host.packages["doca-ofed"] = ("3.1", state)
    made = next(
        made for made in host.measure(ofed="doca-ofed")["checks"] if made["name"] == "amdgpu_driver.ofed"
    )
    assert made["ok"] is ok
    assert made["measured"] == (state or "not installed")


def test_a_full_disk(host: Host) -> None:
    (made,) = host.failed(disk={"/var/lib/nothing/here": 1e6, "/boot": 0})
    assert (made["name"], made["subject"], made["unit"]) == (
        "amdgpu_driver.disk",
        "/var/lib/nothing/here",
        "GiB",
    )


def test_a_driver_that_is_there_needs_no_room_and_no_repository(host: Host) -> None:
    host.packages["amdgpu-dkms"] = ("1:6.14.14.30100000-2204008.24.04", "installed")
    for name in host.offers:
        host.packages[name] = ("1", "installed")
    host.offers = {}
    assert host.failed(disk={"/var": 1e6}, repositories=[{"name": "gone", "url": "file:///nothing"}]) == []
    host.packages[f"linux-headers-{KERNEL}"] = ("1", "unpacked")
    assert {made["name"] for made in host.failed()} == {"amdgpu_driver.kernel_packages", "amdgpu_driver.dpkg"}


def test_a_dpkg_that_has_not_ended(host: Host) -> None:
    host.packages |= {
        "nginx": ("1", "half-configured"),
        "curl": ("1", "installed"),
        "old": ("1", "config-files"),
    }
    (made,) = host.failed()
    assert (made["name"], made["measured"]) == ("amdgpu_driver.dpkg", "nginx (half-configured)")
    assert "dpkg --configure -a" in made["hint"]


@pytest.mark.parametrize(
    ("path", "text", "found"),
    [
        ("sources.list.d/amdgpu.list", "deb https://repo.radeon.com/amdgpu/6.4/ubuntu jammy main", True),
        ("sources.list.d/rocm.sources", "URIs: https://repo.radeon.com/rocm/apt/7.0.2", True),
        ("sources.list", "deb https://repo.radeon.com/rocm/apt/6.4 jammy main", True),
        ("sources.list.d/x.list", "deb [signed-by=/k] {url} noble main", True),
        ("sources.list.d/amdgpu.list", "# deb https://repo.radeon.com/amdgpu/6.4/ubuntu jammy main", False),
        (
            "sources.list.d/amdgpu.list.save",
            "deb https://repo.radeon.com/amdgpu/6.4/ubuntu jammy main",
            False,
        ),
        ("sources.list.d/splitrail-amdgpu.sources", "URIs: https://repo.radeon.com/rocm/apt/7.0", False),
        ("sources.list.d/other.list", "deb https://repo.radeon.com/other noble main", False),
    ],
)
def test_other_files_that_name_the_repositories(host: Host, path: str, text: str, found: bool) -> None:
    host.file(f"etc/apt/{path}", text.format(url=(host.root / "srv/amdgpu").as_uri()))
    names = [(made["name"], made["measured"]) for made in host.failed()]
    assert names == ([("amdgpu_driver.sources", f"/etc/apt/{path}")] if found else [])


@pytest.mark.parametrize(
    ("value", "ok"),
    [
        ("http://proxy.example.org:3128", True),
        ("http://user:secret@10.0.0.1:3128", True),
        ("proxy.example.org:3128", False),
        ("http://proxy.example.org", False),
        ("http://proxy:port", False),
        ("socks5://proxy:1080", False),
    ],
)
def test_a_proxy_is_a_url_and_its_password_is_not_shown(host: Host, value: str, ok: bool) -> None:
    host.environment = {"http_proxy": value}
    found = [made for made in host.measure()["checks"] if made["name"] == "amdgpu_driver.proxy"]
    assert [made["ok"] for made in found] == [ok]
    assert "secret" not in str(found)


def test_a_repository_that_does_not_answer(host: Host) -> None:
    (made,) = host.failed(suite="jammy")
    assert made["name"] == "amdgpu_driver.repository"
    assert "/dists/jammy/Release" in made["measured"]
    (host.root / "srv/amdgpu/dists/noble/Release").write_text("<html>Please log in</html>")
    (made,) = host.failed()
    assert "something else answers at" in made["measured"]
