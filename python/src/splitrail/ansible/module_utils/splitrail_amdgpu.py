"""The node that a GPU driver goes on: its system, its kernel, and the packages that these two ask for.

Standard library only.
"""

from __future__ import annotations

import os
import platform
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from ansible.module_utils.splitrail_packages import (
    PACKAGES_FORMAT,
    Done,
    Offer,
    Package,
    offer,
    packages,
    read,
    run,
)

DRIVER = "amdgpu-dkms"
# Packages that a kernel's modules are built with and need beside them, by system. Debian's
# image has all modules.
KERNEL_PACKAGES = {
    "ubuntu": ("linux-headers-{kernel}", "linux-modules-extra-{kernel}"),
    "debian": ("linux-headers-{kernel}",),
}


@dataclass
class Node:
    """Where readings come from; the tests put files and answers of their own in place."""

    root: Path = Path("/")
    kernel: str = field(default_factory=platform.release)
    environment: Mapping[str, str] = field(default_factory=lambda: dict(os.environ))
    run: Callable[..., Done] = field(default=run)

    def __post_init__(self) -> None:
        self.ask = partial(self.run, self.environment)
        lines = (line.partition("=") for line in read(self.root / "etc/os-release").splitlines())
        said = {name: value.strip().strip("\"'") for name, _, value in lines}
        self.system, self.release = said.get("ID", ""), said.get("VERSION_ID", "")
        self.codename = said.get("VERSION_CODENAME", "")

    @property
    def name(self) -> str:
        """The system as a release's table names it."""
        return f"{self.system}-{self.release}"

    @property
    def boot_id(self) -> str:
        found: str = read(self.root / "proc/sys/kernel/random/boot_id")
        return found

    def kernel_packages(self) -> list[str]:
        """What the running kernel needs; empty on a system that is not known."""
        return [name.format(kernel=self.kernel) for name in KERNEL_PACKAGES.get(self.system, ())]

    def driver_version(self, package: str, suffix: str) -> str:
        """The whole version of amdgpu-dkms: its last part is that of the system that it is packaged for."""
        return f"{package}.{suffix or self.release}"

    def packages(self, *names: str) -> dict[str, Package]:
        """The packages of these names, or all, as dpkg has them."""
        done = self.ask("dpkg-query", "--show", f"--showformat={PACKAGES_FORMAT}", *names)
        found: dict[str, Package] = packages(done.out)
        return found

    def offer(self, name: str, *options: str) -> Offer:
        """What APT knows of a package."""
        return offer(self.ask("apt-cache", *options, "policy", name).out)

    def unfinished(self) -> str:
        """The packages that dpkg has not brought to an end; empty when there are none."""
        return ", ".join(
            f"{name} ({package.status})" for name, package in self.packages().items() if not package.whole
        )
