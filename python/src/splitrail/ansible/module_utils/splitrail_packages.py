"""What a node's packages are: their state, what APT offers, and DKMS' builds. Standard library only."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

ENVIRONMENT = {"LC_ALL": "C", "DEBIAN_FRONTEND": "noninteractive", "NEEDRESTART_SUSPEND": "1"}


@dataclass
class Done:
    """How a command ended; a command that is not there ends with 127."""

    code: int
    out: str
    err: str = ""

    @property
    def text(self) -> str:
        return f"{self.out}\n{self.err}".strip()


def run(environment: Mapping[str, str], *command: str, timeout_s: int = 120) -> Done:
    """Run a command; never raises for what the command does."""
    try:
        done = subprocess.run(
            command,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=timeout_s,
            check=False,
            stdin=subprocess.DEVNULL,
            env={**environment, **ENVIRONMENT},
        )
    except FileNotFoundError:
        return Done(127, "", f"{command[0]} is not installed")
    except subprocess.TimeoutExpired:
        return Done(124, "", f"{' '.join(command)}: no answer within {timeout_s} s")
    return Done(done.returncode, done.stdout, done.stderr)


@dataclass(frozen=True)
class Package:
    """A package on the node; ``status`` is dpkg's word (installed, half-configured, ...)."""

    version: str
    status: str

    @property
    def whole(self) -> bool:
        return self.status == "installed"


def packages(text: str) -> dict[str, Package]:
    """The packages of ``dpkg-query --showformat PACKAGES_FORMAT``, those of which only settings "
    "remain left out."""
    found = {}
    for line in text.splitlines():
        name, _, rest = line.partition("\t")
        version, _, status = rest.partition("\t")
        if status and status not in {"not-installed", "config-files"}:
            found[name] = Package(version, status)
    return found


PACKAGES_FORMAT = "${Package}\\t${Version}\\t${db:Status-Status}\\n"


@dataclass(frozen=True)
class Offer:
    """What APT knows of a package: the version that it would take, and all that it sees."""

    candidate: str
    versions: tuple[str, ...]


def offer(text: str) -> Offer:
    """Read ``apt-cache policy PACKAGE``."""
    candidate = re.search(r"^\s*Candidate: (\S+)", text, re.MULTILINE)
    # A version stands in the column of the marker ***, with its priority behind it; what is only installed
    # has /var/lib/dpkg/status as its one source.
    versions = []
    current, sources = "", 0
    for line in text.partition("Version table:")[2].splitlines():
        if match := re.match(r"^ (?:\*\*\*|   ) (\S+)(?: -?\d+)?$", line):
            if current and sources:
                versions.append(current)
            current, sources = match[1], 0
        elif re.match(r"^\s+-?\d+ ", line) and "/var/lib/dpkg/status" not in line:
            sources += 1
    if current and sources:
        versions.append(current)
    named = candidate[1] if candidate else "(none)"
    return Offer("" if named == "(none)" else named, tuple(versions))


@dataclass(frozen=True)
class Build:
    """One line of ``dkms status``."""

    version: str
    kernel: str
    state: str
    warning: str


def builds(text: str, module: str) -> list[Build]:
    """The builds of a module, from ``dkms status`` of DKMS 2 (module, version) or 3 (module/version).

    A version that is added but built for no kernel has no kernel.
    """
    found = []
    for line in text.splitlines():
        match = re.match(
            rf"^{re.escape(module)}(?:/|, )([^,:\s]+)(?:, ([^,:\s]+), [^,:\s]+)?: (\w+)(.*)$", line
        )
        if match:
            found.append(Build(match[1], match[2] or "", match[3], match[4].strip()))
    return found


def read(path: Path) -> str:
    """A file's text without what surrounds it; empty when it cannot be read."""
    try:
        return path.read_text(encoding="utf-8", errors="replace").strip()
    except OSError:
        return ""
