#!/usr/bin/python
"""Install the driver's packages whole or not at all, and say exactly what is left when it fails."""

from __future__ import annotations

import re
import time
from pathlib import Path

from ansible.module_utils.basic import AnsibleModule
from ansible.module_utils.splitrail_amdgpu import Node
from ansible.module_utils.splitrail_packages import Done, Package

DOCUMENTATION = r"""
module: splitrail_amdgpu_install
short_description: Install the driver's packages whole or not at all
description:
  - Refreshes the index of the role's own repositories, sees that they offer the versions that are asked for,
    lets APT plan, downloads everything, and only then installs. What fails before has installed nothing.
  - A package that was not there before and could not be configured is taken out again, so that dpkg is whole.
    A package that was there before is left, with the commands that finish it.
options:
  packages: {description: Names, or C(name=version)., type: list, elements: str, required: true}
  sources: {description: The role's own sources file., type: path, required: true}
  lock_timeout_s: {description: Longest wait for dpkg's lock in seconds., type: int, default: 120}
  timeout_s: {description: Longest installation in seconds; DKMS compiles in it., type: int, default: 3600}
author: The splitrail authors
"""

RETURN = r"""
missing: {description: What was not there., type: list, elements: str, returned: always}
seconds: {description: How long it took., type: float, returned: always}
"""

# What APT says, and what is to be done about it.
CURES = (
    (r"EXPKEYSIG|KEYEXPIRED", "the repository is signed by an expired key: fetch the prolonged one"),
    (r"NO_PUBKEY|not signed", "the repository is signed by another key than the release names: find out why"),
    (r"BADSIG", "the repository's signature is wrong: its mirror is damaged or somebody changed it"),
    (r"Hash Sum mismatch|unexpected size|Mirror sync|invalid checksum|mismatched",
     "half a download, or a mirror in the middle of an update: `apt-get clean`, try again"),
    (r"File not found|404|does not have a Release", "the repository lacks it: see its URL and suite"),
    (r"Release file .* is (not valid yet|expired)", "the node's clock is wrong, or the mirror is old"),
    (r"No space left|don't have enough free space", "the disk is full: free space on /var, /usr and /boot"),
    (r"Could not (resolve|connect)|Connection (failed|refused|timed out)|Proxy",
     "the repository was not reached: see the node's network and proxy"),
    (r"Could not get lock|is another process using it", "another program installs: let it end, try again"),
)  # fmt: skip


class Failed(Exception):
    """The packages are not installed; the message says why, what is left, and what to run."""


class Installation:
    """One installation on one node."""

    def __init__(self, node: Node, wanted: list[str], sources: str, lock_s: int, timeout_s: int) -> None:
        self.node = node
        self.wanted = dict(_pair(one) for one in wanted)
        self.sources = sources
        self.timeout_s = timeout_s
        self.refreshed = False
        self.options = (
            "--yes",
            "--quiet",
            "--no-install-recommends",
            # The version is named: an older one is meant.
            "--allow-downgrades",
            f"--option=DPkg::Lock::Timeout={lock_s}",
            "--option=Dpkg::Options::=--force-confdef",
            "--option=Dpkg::Options::=--force-confold",
        )

    def missing(self) -> list[str]:
        """What is not there, or not whole, or of another version."""
        here = self.node.packages(*self.wanted)
        return [
            f"{name}={version}" if version else name
            for name, version in self.wanted.items()
            if name not in here or not here[name].whole or (version and here[name].version != version)
        ]

    def run(self, missing: list[str]) -> None:
        """Install. Raises Failed."""
        self._refresh(missing)
        self._offered(missing)
        planned = self._apt("--simulate", "install", *missing)
        if planned.code and not self.refreshed:
            # What the packages depend on may be in the distribution's index only, and that one old or empty.
            self._refresh_all()
            planned = self._apt("--simulate", "install", *missing)
        self._expect(planned, "APT cannot plan it", "Nothing was changed.")
        fetched = self._apt("--download-only", "install", *missing)
        self._expect(fetched, "the download failed", "Nothing was installed.")
        before, started = self.node.packages(), time.time()
        done = self._apt("install", *missing)
        if done.code:
            raise Failed(f"{_why(done)}{self._log(started)} {self._put_back(before)}")
        if left := self.missing():
            raise Failed(
                f"APT reports success, and yet these are not installed as asked for: {', '.join(left)}"
            )

    def _apt(self, *arguments: str) -> Done:
        return self.node.ask("apt-get", *self.options, *arguments, timeout_s=self.timeout_s)

    def _refresh(self, missing: list[str]) -> None:
        own = (
            f"--option=Dir::Etc::sourcelist={self.sources}",
            "--option=Dir::Etc::sourceparts=-",
            # The index of the other repositories stays.
            "--option=APT::Get::List-Cleanup=0",
            "--option=APT::Update::Error-Mode=any",
        )
        done = self.node.ask("apt-get", "--quiet", *own, "update", timeout_s=300)
        self._expect(done, "the repositories' index cannot be read", "Nothing was installed.")
        if not all(self.node.offer(_pair(one)[0]).candidate for one in missing):
            self._refresh_all()

    def _refresh_all(self) -> None:
        """The distribution's index too, for headers and dkms; what is broken there shows in the next step."""
        self.refreshed = True
        self.node.ask("apt-get", "--quiet", "update", timeout_s=300)

    def _offered(self, missing: list[str]) -> None:
        for one in missing:
            name, version = _pair(one)
            offer = self.node.offer(name)
            if not offer.candidate:
                raise Failed(
                    f"no repository of this node offers {name}: see {self.sources} and the node's own "
                    "mirror. Nothing was installed."
                )
            if version and version not in offer.versions:
                raise Failed(
                    f"{name} {version} is not offered, but {', '.join(offer.versions)}: see that repository "
                    "and release are of one driver, and of this system. Nothing was installed."
                )

    def _expect(self, done: Done, what: str, left: str) -> None:
        if done.code:
            raise Failed(f"{what}: {_why(done)} {left}")

    def _log(self, since: float) -> str:
        """The end of the build log that DKMS wrote since then, where a build is what failed."""
        logs = [
            log
            for log in (self.node.root / "var/lib/dkms/amdgpu").glob("*/build/make.log")
            if log.stat().st_mtime >= since - 1
        ]
        if not logs:
            return ""
        lines = logs[-1].read_text(encoding="utf-8", errors="replace").strip().splitlines()[-3:]
        return f" {logs[-1]} ends with: {' | '.join(lines)}."

    def _put_back(self, before: dict[str, Package]) -> str:
        """Take out what is new and not whole; returns what is left, for people."""
        broken = {name for name, package in self.node.packages().items() if not package.whole}
        new, old = sorted(broken - before.keys()), sorted(broken & before.keys())
        if new:
            self.node.ask("dpkg", "--force-remove-reinstreq", "--purge", *new, timeout_s=self.timeout_s)
        left = self.node.unfinished()
        if not left:
            return (f"Taken out again: {', '.join(new)}. " if new else "") + "dpkg is whole."
        finish = "Correct the cause, then run `dpkg --configure -a` and `apt-get --fix-broken install`"
        if old:
            former = " ".join(f"{name}={before[name].version}" for name in old)
            finish += f"; or go back with `apt-get install --allow-downgrades {former}`"
        return f"dpkg is left with {left}. {finish}."


def _pair(one: str) -> tuple[str, str]:
    name, _, version = one.partition("=")
    return name, version


def _why(done: Done) -> str:
    """The lines of an output that say what went wrong, and the cure where it is known."""
    lines = [line.strip() for line in done.text.splitlines()]
    told = [line for line in lines if re.match(r"[EW]: |dpkg: error|Error!|ERROR", line)] or lines[-3:]
    text = " | ".join(dict.fromkeys(told[-4:])) or f"exit code {done.code}"
    for pattern, cure in CURES:
        if re.search(pattern, done.text):
            return f"{cure} ({text})."
    return f"{text}."


def main() -> None:
    """Entry point of the module."""
    module = AnsibleModule(
        argument_spec={
            "packages": {"type": "list", "elements": "str", "required": True},
            "sources": {"type": "path", "required": True},
            "lock_timeout_s": {"type": "int", "default": 120},
            "timeout_s": {"type": "int", "default": 3600},
        },
        supports_check_mode=True,
    )
    want = module.params
    started = time.monotonic()
    sources = str(Path(want["sources"]))
    work = Installation(Node(), want["packages"], sources, want["lock_timeout_s"], want["timeout_s"])
    missing = work.missing()
    if missing and not module.check_mode:
        try:
            work.run(missing)
        except Failed as error:
            module.fail_json(msg=f"the driver is not installed: {error}", missing=missing)
    module.exit_json(changed=bool(missing), missing=missing, seconds=round(time.monotonic() - started, 1))


if __name__ == "__main__":
    main()
