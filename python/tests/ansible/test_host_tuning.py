"""Every check of splitrail_host_tuning, passing and failing, on a host made of files."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from splitrail.ansible.module_utils import splitrail_firmware as firmware
from splitrail.ansible.modules import splitrail_host_tuning as tuning
from splitrail.ansible.modules.splitrail_host_tuning import GIB, Host, Wanted, boot_state, drift, examine

from .host_tree import BOOT_ID, GPUS, LINUX, put, tuned

ROLE = Path(__file__).parents[3] / "roles/host_tuning"
TRACKING = (
    "0A0A0001,10.10.0.1,3,1795000000.1,{offset},0.000002,0.000003,1.2,0.0,0.02,0.001,0.0005,64.2,{leap}\n"
)
PACKAGES = (
    "linux-image-6.8.0-60-generic hold installed\n"
    "linux-image-old deinstall config-files\n"
    "curl install installed\n"
)


def answers(
    *, offset: str = "-0.000031", leap: str = "Normal", memlock: str = "infinity", packages: str = PACKAGES
) -> Callable[..., str]:
    """The commands of the host, by what they are asked."""
    texts = {
        "chronyc": TRACKING.format(offset=offset, leap=leap),
        "systemctl": f"{memlock}\n",
        "dpkg-query": packages,
    }

    def run(*command: str) -> str:
        return texts[command[0]]

    return run


@pytest.fixture
def root(tmp_path: Path) -> Path:
    tuned(tmp_path)
    return tmp_path


@pytest.fixture
def host(root: Path) -> Host:
    return Host(root=root, run=answers(), shm_bytes=lambda _: 64 * GIB)


@pytest.fixture
def want() -> Wanted:
    advice: dict[str, Any] = yaml.safe_load((ROLE / "files/firmware.yml").read_text(encoding="utf-8"))
    return {
        "kernel_cmdline": {
            "pci": ["realloc=off", "bfsort"],
            "iommu": "pt",
            "numa_balancing": "disable",
        },
        "boot_file": "/etc/default/grub.d/90-splitrail.cfg",
        "state_file": "/var/lib/splitrail/reboot.json",
        "reboot_later": False,
        "sysctl": {"kernel.numa_balancing": 0, "net.ipv4.tcp_rmem": "4096 87380 16777216"},
        "idle_latency_us": 10,
        "governor": "performance",
        "hugepages": {"2048": 512},
        "transparent_hugepages": "madvise",
        "shm_gib": 64.0,
        "memlock": "unlimited",
        "clock_offset_ms": 10.0,
        "hold": ["linux-image-*"],
        "held_file": "/var/lib/splitrail/held",
        "firmware": advice,
        "firmware_required": ["iommu", "large_bar", "nps"],
    }


def failed(host: Host, want: Wanted) -> list[dict[str, Any]]:
    return [finding for finding in examine(host, want) if not finding["ok"]]


def only(host: Host, want: Wanted) -> dict[str, Any]:
    """The one finding that failed."""
    (finding,) = failed(host, want)
    assert finding["hint"]
    return finding


def test_a_tuned_host_passes(host: Host, want: Wanted) -> None:
    findings = examine(host, want)
    assert failed(host, want) == []
    names = {finding["name"].removeprefix("host_tuning.") for finding in findings}
    plain = set(want) - {
        "boot_file",
        "state_file",
        "held_file",
        "reboot_later",
        "firmware_required",
        "firmware",
    }
    plain = plain - {"idle_latency_us", "shm_gib", "clock_offset_ms"} | {
        "idle_state",
        "shm",
        "clock",
        "boot_menu",
    }
    seen = {f"firmware_{name}" for name in [*firmware.READERS, "unseen"]}
    assert names == plain | seen


def test_nothing_declared_is_nothing_looked_at(tmp_path: Path, want: Wanted) -> None:
    def run(*command: str) -> str:
        raise AssertionError(command)

    nothing = {
        name: type(value)() if isinstance(value, (dict, list)) else None for name, value in want.items()
    }
    assert examine(Host(root=tmp_path, run=run), nothing) == []


@pytest.mark.parametrize(
    ("path", "text", "found"),
    [
        ("proc/sys/kernel/numa_balancing", "1",
         ("sysctl", "kernel.numa_balancing", "1")),
        ("sys/devices/system/cpu/cpu3/cpuidle/state2/disable", "0",
         ("idle_state", "C2 (100 us)", "off on 7 CPUs, on on 1 CPUs")),
        ("sys/devices/system/cpu/cpu3/cpuidle/state1/disable", "1",
         ("idle_state", "C1 (1 us)", "off on 1 CPUs, on on 7 CPUs")),
        ("sys/devices/system/cpu/cpufreq/policy5/scaling_governor", "powersave",
         ("governor", "cpufreq", "performance on 7 policies, powersave on 1 policies")),
        ("sys/kernel/mm/hugepages/hugepages-2048kB/nr_hugepages", "498",
         ("hugepages", "2048 KiB", 498)),
        ("sys/kernel/mm/transparent_hugepage/enabled", "[always] madvise never",
         ("transparent_hugepages", "enabled", "always")),
        ("boot/grub/grub.cfg", "  linux /vmlinuz ro quiet",
         ("boot_menu", "/boot/grub/grub.cfg", "1 of 1 entries lack some")),
        ("boot/grub/grub.cfg", "# empty",
         ("boot_menu", "/boot/grub/grub.cfg", "0 of 0 entries lack some")),
        ("etc/default/grub.d/50-cloud.cfg", 'GRUB_CMDLINE_LINUX_DEFAULT="console=ttyS0 iommu=off"',
         ("cmdline_conflict", "iommu in /etc/default/grub.d/50-cloud.cfg", "iommu=off")),
        ("etc/default/grub", 'GRUB_CMDLINE_LINUX="pci=nobfsort,realloc=on"',
         ("cmdline_conflict", "pci in /etc/default/grub", "pci=nobfsort pci=realloc=on")),
    ],
)  # fmt: skip
def test_what_differs_is_named(
    host: Host, want: Wanted, path: str, text: str, found: tuple[str, str, object]
) -> None:
    put(host.root, path, text)
    finding = only(host, want)
    name = finding["name"].removeprefix("host_tuning.")
    assert (name, finding["subject"], finding["measured"]) == found
    assert drift(examine(host, want)) == [name]


@pytest.mark.parametrize(
    ("changed", "name", "measured"),
    [
        ({"run": answers(offset="0.0421")}, "clock", 42.1),
        ({"run": answers(leap="Not synchronised")}, "clock", "not synchronised"),
        ({"run": answers(memlock=str(8 * 2**20))}, "memlock", "8192"),
        ({"run": answers(packages=PACKAGES.replace("hold", "install"))}, "hold",
         "not held: linux-image-6.8.0-60-generic"),
        ({"run": answers(packages="curl install installed\n")}, "hold", "no such package is installed"),
        ({"shm_bytes": lambda _: 32 * GIB}, "shm", 32.0),
    ],
)  # fmt: skip
def test_what_services_say(
    host: Host, want: Wanted, changed: dict[str, Any], name: str, measured: object
) -> None:
    finding = only(replace(host, **changed), want)
    assert (finding["name"], finding["measured"]) == (f"host_tuning.{name}", measured)


@pytest.mark.parametrize("text", ["506 Cannot talk to daemon", ""])
def test_a_clock_that_says_nothing_is_not_ok(host: Host, want: Wanted, text: str) -> None:
    def run(*command: str) -> str:
        return text if command[0] == "chronyc" else answers()(*command)

    assert "could not be checked: chronyc answered" in only(replace(host, run=run), want)["measured"]


@pytest.mark.parametrize(
    ("folder", "name", "why"),
    [
        ("sys/devices/system/cpu/cpufreq", "governor", "P-states"),
        ("sys/kernel/mm/transparent_hugepage", "transparent_hugepages", "No such file"),
        ("boot", "boot_menu", "No such file"),
    ],
)
def test_what_the_host_has_not_got_is_not_ok(
    host: Host, want: Wanted, folder: str, name: str, why: str
) -> None:
    (host.root / folder).rename(host.root / "gone")
    finding = only(host, want)
    assert finding["name"] == f"host_tuning.{name}"
    assert why in finding["measured"]
    assert "null" in finding["hint"]


@pytest.mark.parametrize(
    ("declared", "name", "why"),
    [
        ({"hugepages": {"1048576": 4}}, "hugepages", "the kernel has no pages of 1048576 KiB"),
        ({"governor": "schedutil"}, "governor", "the kernel offers performance, powersave"),
    ],
)
def test_what_the_kernel_does_not_offer_is_not_ok(
    host: Host, want: Wanted, declared: dict[str, Any], name: str, why: str
) -> None:
    policy = "sys/devices/system/cpu/cpufreq/policy0"
    put(host.root, f"{policy}/scaling_available_governors", "performance powersave")
    assert failed(host, want) == []
    finding = only(host, {**want, **declared})
    assert finding["name"] == f"host_tuning.{name}"
    assert finding["measured"] == f"could not be checked: {why}"


def test_no_idle_states_are_told_from_tuned_ones(host: Host, want: Wanted) -> None:
    for path in host.root.glob("sys/devices/system/cpu/cpu*/cpuidle"):
        path.rename(path.with_name("gone"))
    assert only(host, want)["name"] == "host_tuning.idle_state"


# The kernel command line and the reboot


def test_before_the_reboot(host: Host, want: Wanted) -> None:
    put(host.root, "proc/cmdline", f"{LINUX} pci=realloc=off quiet")
    assert boot_state(host, want, want["kernel_cmdline"])["reboot"] == "needed"
    findings = {finding["subject"]: finding for finding in failed(host, want)}
    assert set(findings) == {"pci", "iommu", "numa_balancing"}
    assert findings["pci"]["measured"] == "pci=realloc=off"
    assert findings["iommu"]["measured"] == "absent"
    assert "Reboot the host" in findings["iommu"]["hint"]


def test_a_reboot_that_is_to_come_is_no_fault_where_said_so(host: Host, want: Wanted) -> None:
    put(host.root, "proc/cmdline", LINUX)
    assert failed(host, {**want, "reboot_later": True}) == []
    # Without the options in the menu no reboot brings them.
    put(host.root, "boot/grub/grub.cfg", "linux /vmlinuz ro")
    names = {finding["name"] for finding in failed(host, {**want, "reboot_later": True})}
    assert names == {"host_tuning.boot_menu", "host_tuning.kernel_cmdline"}


@pytest.mark.parametrize(
    ("options", "boot_id", "reboot"),
    [
        ("pci=realloc=off pci=bfsort iommu=pt numa_balancing=disable", BOOT_ID, "needed"),
        ("pci=realloc=off pci=bfsort iommu=pt numa_balancing=disable", "an earlier boot", "vain"),
        ("iommu=pt", "an earlier boot", "needed"),
    ],
)
def test_a_reboot_is_asked_for_once(
    host: Host, want: Wanted, options: str, boot_id: str, reboot: str
) -> None:
    put(host.root, "proc/cmdline", LINUX)
    put(host.root, "var/lib/splitrail/reboot.json", json.dumps({"options": options, "boot_id": boot_id}))
    assert boot_state(host, want, want["kernel_cmdline"])["reboot"] == reboot
    hints = {finding["hint"] for finding in failed(host, {**want, "reboot_later": reboot == "vain"})}
    assert len(hints) == 1
    assert ("A reboot did not bring it" in hints.pop()) == (reboot == "vain")


def test_a_half_written_request_is_asked_again(host: Host, want: Wanted) -> None:
    put(host.root, "proc/cmdline", LINUX)
    put(host.root, "var/lib/splitrail/reboot.json", '{"options": "io')
    assert boot_state(host, want, want["kernel_cmdline"])["reboot"] == "needed"


# Packages


def test_only_own_holds_are_released(host: Host, want: Wanted) -> None:
    put(host.root, "var/lib/splitrail/held", "linux-image-6.8.0-60-generic\nno-longer-here")
    both = PACKAGES + "someone-elses hold installed\n"
    state = tuning.hold_state(replace(host, run=answers(packages=both)), {**want, "hold": ["curl"]})
    assert state == {"wanted": ["curl"], "missing": ["curl"], "release": ["linux-image-6.8.0-60-generic"]}


# Firmware


@pytest.mark.parametrize(
    ("path", "text", "found"),
    [
        ("sys/devices/system/cpu/smt/active", "1", ("smt", "on")),
        ("sys/devices/system/cpu/cpufreq/boost", "0", ("boost", "off")),
        ("sys/module/pcie_aspm/parameters/policy", "[default] performance powersave", ("aspm", "default")),
        (f"sys/bus/pci/devices/{GPUS[2]}/resource",
         "0x0000000090000000 0x000000009fffffff 0x0000000000040200", ("large_bar", f"off on {GPUS[2]}")),
    ],
)  # fmt: skip
def test_firmware_is_reported_and_fails_only_where_required(
    host: Host, want: Wanted, path: str, text: str, found: tuple[str, str]
) -> None:
    name, measured = found
    put(host.root, path, text)
    reported = {finding["name"]: finding for finding in examine(host, {**want, "firmware_required": []})}
    finding = reported[f"host_tuning.firmware_{name}"]
    assert (finding["ok"], finding["measured"]) == (True, measured)
    assert finding["required"] == f"any; {want['firmware'][name]['value']} is recommended"
    assert want["firmware"][name]["source"] in finding["hint"]
    assert only(host, {**want, "firmware_required": [name]})["name"] == f"host_tuning.firmware_{name}"


def test_nps4_is_seen(host: Host, want: Wanted) -> None:
    nodes = host.root / "sys/devices/system/node"
    for cpu in range(4):
        (nodes / f"node{cpu}/cpu{cpu}").mkdir(parents=True, exist_ok=True)
        if cpu:
            (nodes / f"node0/cpu{cpu}").rmdir()
    finding = only(host, want)
    # Socket 0 has four nodes, socket 1 (node1 as well) one: the odd one out shows too.
    assert (finding["name"], finding["measured"]) == ("host_tuning.firmware_nps", "1 4")


def test_an_iommu_that_is_off_is_seen(host: Host, want: Wanted) -> None:
    (host.root / "sys/class/iommu/ivhd0").rmdir()
    assert only(host, want)["name"] == "host_tuning.firmware_iommu"


def test_required_firmware_that_cannot_be_read_is_not_ok(host: Host, want: Wanted) -> None:
    (host.root / "sys/bus/pci/devices").rename(host.root / "gone")
    assert only(host, want)["measured"] == "could not be read: no AMD GPU on the PCI bus"


def test_the_recommended_settings_all_have_a_source(want: Wanted) -> None:
    assert set(firmware.READERS) < set(want["firmware"])
    assert all(set(advice) == {"value", "setting", "source"} for advice in want["firmware"].values())
    assert all(isinstance(advice["value"], str) for advice in want["firmware"].values())


def test_a_command_that_complains_is_named() -> None:
    with pytest.raises(OSError, match=r"ls /no/such/folder: .*No such file"):
        tuning.run("ls", "/no/such/folder")
