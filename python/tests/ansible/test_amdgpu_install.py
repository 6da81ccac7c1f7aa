"""What the driver's installation does when a step fails, and says; and how dpkg, APT and DKMS are read."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from splitrail.ansible.module_utils.splitrail_amdgpu import Node
from splitrail.ansible.module_utils.splitrail_packages import (
    Build,
    Done,
    Offer,
    builds,
    offer,
    packages,
    run,
)
from splitrail.ansible.modules.splitrail_amdgpu_install import CURES, Failed, Installation

# As `apt-cache policy` prints it on Ubuntu 24.04.
POLICY = """amdgpu-dkms:
  Installed: 1:6.12.12.60404-2202139.24.04
  Candidate: 1:6.14.14.30100000-2204008.24.04
  Version table:
     1:6.14.14.30100000-2204008.24.04 600
        600 https://repo.radeon.com/amdgpu/30.10/ubuntu noble/main amd64 Packages
 *** 1:6.12.12.60404-2202139.24.04 100
        100 /var/lib/dpkg/status
     1:6.8.0 -1
        500 http://archive.example.org/ubuntu noble/universe amd64 Packages
"""


def test_what_apt_offers() -> None:
    found = offer(POLICY)
    assert found == Offer("1:6.14.14.30100000-2204008.24.04", ("1:6.14.14.30100000-2204008.24.04", "1:6.8.0"))
    assert offer("N: Unable to locate package x") == Offer("", ())
    assert offer("x:\n  Installed: (none)\n  Candidate: (none)\n  Version table:\n") == Offer("", ())


def test_what_dpkg_has() -> None:
    found = packages(
        "a\t1\tinstalled\nb\t2\thalf-configured\nc\t3\tconfig-files\nd\t\tnot-installed\n\ngarbage\n"
    )
    assert {name: package.whole for name, package in found.items()} == {"a": True, "b": False}


@pytest.mark.parametrize(
    ("line", "found"),
    [
        ("amdgpu/6.14.14-2204008.24.04, 6.14.0-29-generic, x86_64: installed",
         Build("6.14.14-2204008.24.04", "6.14.0-29-generic", "installed", "")),
        ("amdgpu/6.16.6-2255209.24.04, 6.8.0-88-generic, x86_64: installed (Original modules exist)",
         Build("6.16.6-2255209.24.04", "6.8.0-88-generic", "installed", "(Original modules exist)")),
        ("amdgpu, 5.18.13-1538762.22.04, 5.15.0-60-generic, x86_64: installed",
         Build("5.18.13-1538762.22.04", "5.15.0-60-generic", "installed", "")),
        ("amdgpu/6.14.14-2204008.24.04: added", Build("6.14.14-2204008.24.04", "", "added", "")),
        ("amdgpu/6.14.14, 6.8.0-79-generic, x86_64: built",
         Build("6.14.14", "6.8.0-79-generic", "built", "")),
        ("amdgpu/6.14.14, 6.8.0, x86_64: installed (WARNING! Diff between built and installed module!)",
         Build("6.14.14", "6.8.0", "installed", "(WARNING! Diff between built and installed module!)")),
        ("nvidia/550.54, 6.8.0-79-generic, x86_64: installed", None),
        ("Deprecated feature: REMAKE_INITRD (/var/lib/dkms/amdgpu/source/dkms.conf)", None),
    ],
)  # fmt: skip
def test_what_dkms_built(line: str, found: Build | None) -> None:
    assert builds(line, "amdgpu") == ([found] if found else [])


def test_a_command_that_is_not_there() -> None:
    assert run({"PATH": "/nothing"}, "no-such-command").code == 127
    assert run({"PATH": "/usr/bin:/bin"}, "sleep", "5", timeout_s=0).code == 124


WANTED = ["linux-headers-6.8", "amdgpu-dkms=2"]
Script = dict[str, Done]


class Apt:
    """APT and dpkg with a state; ``script`` says how a step ends, by a word of its command line."""

    def __init__(self, script: Script) -> None:
        self.script = script
        self.state = {"linux-headers-6.8": ("1", "installed")}
        self.offers = {"linux-headers-6.8": ["1"], "amdgpu-dkms": ["2"]}
        self.installs: Callable[[], None] = lambda: self.state.update({"amdgpu-dkms": ("2", "installed")})
        self.purges = True
        self.steps: list[str] = []

    def run(self, _environment: dict[str, str], *command: str, timeout_s: int = 0) -> Done:  # noqa: ARG002
        if command[0] == "dpkg-query":
            names = [one for one in command[1:] if not one.startswith("--")] or list(self.state)
            return Done(0, "\n".join("\t".join((n, *self.state[n])) for n in names if n in self.state))
        if command[0] == "apt-cache":
            versions = self.offers.get(command[-1], [])
            table = "".join(f"     {v} 500\n        500 http://x y Packages\n" for v in versions)
            return Done(0, f"  Candidate: {(versions or ['(none)'])[0]}\n  Version table:\n{table}")
        words = ("update", "--simulate", "--download-only", "--purge", "install")
        step = next(word for word in words if word in command)
        self.steps.append(step)
        if step == "install":
            self.installs()
        if step == "--purge" and self.purges:
            for name in command[3:]:
                self.state.pop(name, None)
        return self.script.get(step, Done(0, ""))


def work(apt: Apt, root: Path = Path("/nothing")) -> Installation:
    return Installation(Node(root, "6.8", {}, apt.run), WANTED, "/etc/apt/x.sources", 1, 1)


def fails(apt: Apt, root: Path = Path("/nothing")) -> str:
    with pytest.raises(Failed) as error:
        work(apt, root).run(work(apt, root).missing())
    return str(error.value)


def test_everything_is_downloaded_before_anything_is_installed() -> None:
    apt = Apt({})
    assert work(apt).missing() == ["amdgpu-dkms=2"]
    work(apt).run(["amdgpu-dkms=2"])
    assert apt.steps == ["update", "--simulate", "--download-only", "install"]
    assert work(apt).missing() == []


@pytest.mark.parametrize("state", [("1", "installed"), ("2", "half-configured"), ("3", "installed")])
def test_another_version_or_half_a_package_is_missing(state: tuple[str, str]) -> None:
    apt = Apt({})
    apt.state["amdgpu-dkms"] = state
    assert work(apt).missing() == ["amdgpu-dkms=2"]


@pytest.mark.parametrize(
    ("step", "says", "cure", "left"),
    [
        ("update", "W: GPG error: http://x InRelease: EXPKEYSIG 9386B48A1A693C5C ROCm", "an expired key",
         "Nothing was installed."),
        ("update", "E: The repository 'http://x noble InRelease' is not signed.", "signed by another key",
         "Nothing was installed."),
        ("update", "W: GPG error: http://x InRelease: BADSIG 9386B48A1A693C5C", "signature is wrong",
         "Nothing was installed."),
        ("update", "E: Release file for http://x is not valid yet (for another 2h)", "clock is wrong",
         "Nothing was installed."),
        ("update", "E: Failed to fetch http://x  Could not resolve 'x'", "not reached",
         "Nothing was installed."),
        ("--simulate", "E: Unable to correct problems, held broken packages.", "held broken packages",
         "Nothing was changed."),
        ("--download-only", "E: Failed to fetch http://x.deb  Hash Sum mismatch", "half a download",
         "Nothing was installed."),
        ("--download-only", "E: Failed to fetch http://x.deb  File has unexpected size (1 != 2)",
         "half a download", "Nothing was installed."),
        ("--download-only", "E: Failed to fetch http://x.deb  404  Not Found", "the repository lacks it",
         "Nothing was installed."),
        ("--download-only", "E: You don't have enough free space in /var/cache/apt/archives/.",
         "the disk is full", "Nothing was installed."),
        ("--download-only", "E: Could not get lock /var/lib/dpkg/lock-frontend", "another program installs",
         "Nothing was installed."),
    ],
)  # fmt: skip
def test_what_fails_before_the_installation_installs_nothing(
    step: str, says: str, cure: str, left: str
) -> None:
    apt = Apt({step: Done(100, "", says)})
    said = fails(apt)
    assert cure in said
    assert said.endswith(left)
    assert "install" not in apt.steps


def test_what_the_packages_need_may_be_in_the_distributions_index_only() -> None:
    apt = Apt({"--simulate": Done(100, "", "E: Unmet dependencies: amdgpu-dkms depends on dkms")})
    refreshed = apt.run

    def run(environment: dict[str, str], *command: str, timeout_s: int = 0) -> Done:
        if apt.steps.count("update") > 1:
            apt.script.clear()
        return refreshed(environment, *command, timeout_s=timeout_s)

    made = Installation(Node(Path("/nothing"), "6.8", {}, run), WANTED, "/x", 1, 1)
    made.run(made.missing())
    assert apt.steps == ["update", "--simulate", "update", "--simulate", "--download-only", "install"]


def test_every_cure_is_for_something_that_is_tested() -> None:
    assert len(CURES) == 9


def test_a_version_that_nobody_offers() -> None:
    apt = Apt({})
    apt.offers["amdgpu-dkms"] = ["3"]
    assert "amdgpu-dkms 2 is not offered, but 3: see that repository and release are of one driver" in fails(
        apt
    )
    apt.offers["amdgpu-dkms"] = []
    assert "no repository of this node offers amdgpu-dkms" in fails(apt)
    assert apt.steps == ["update", "update", "update"]  # the second time the distribution's index too


def test_a_new_package_that_breaks_is_taken_out_again(tmp_path: Path) -> None:
    log = tmp_path / "var/lib/dkms/amdgpu/2/build/make.log"
    log.parent.mkdir(parents=True)
    log.write_text("CC a.o\nkcl_preempt.h: error: x\nmake: *** [amdgpu.o] Error 1\n")
    former = tmp_path / "var/lib/dkms/amdgpu/1/build/make.log"
    former.parent.mkdir(parents=True)
    former.write_text("of a build long ago\n")
    os.utime(former, (1, 1))
    apt = Apt({"install": Done(100, "", "dpkg: error processing package amdgpu-dkms (--configure):")})
    apt.installs = lambda: apt.state.update(
        {"amdgpu-dkms": ("2", "half-configured"), "dkms": ("3", "installed")}
    )
    said = fails(apt, tmp_path)
    assert "dpkg: error processing package amdgpu-dkms" in said
    assert "long ago" not in said
    assert "make.log ends with: CC a.o | kcl_preempt.h: error: x | make: *** [amdgpu.o] Error 1." in said
    assert said.endswith("Taken out again: amdgpu-dkms. dpkg is whole.")
    assert set(apt.state) == {"linux-headers-6.8", "dkms"}


def test_a_former_package_that_breaks_is_left_with_the_way_back() -> None:
    apt = Apt({"install": Done(100, "", "E: Sub-process /usr/bin/dpkg returned an error code (1)")})
    apt.state["amdgpu-dkms"] = ("1", "installed")
    apt.installs = lambda: apt.state.update({"amdgpu-dkms": ("2", "half-configured")})
    said = fails(apt)
    assert "dpkg is left with amdgpu-dkms (half-configured)." in said
    assert "`dpkg --configure -a`" in said
    assert said.endswith("go back with `apt-get install --allow-downgrades amdgpu-dkms=1`.")
    assert "--purge" not in apt.steps


def test_a_package_that_cannot_even_be_taken_out_is_said() -> None:
    apt = Apt({"install": Done(100, "", "E: x"), "--purge": Done(1, "", "prerm failed")})
    apt.installs = lambda: apt.state.update({"amdgpu-dkms": ("2", "half-configured")})
    apt.purges = False
    assert "dpkg is left with amdgpu-dkms (half-configured). Correct the cause, then run" in fails(apt)


def test_success_that_is_none() -> None:
    apt = Apt({})
    apt.installs = lambda: None
    assert "APT reports success, and yet these are not installed as asked for: amdgpu-dkms=2" in fails(apt)
