"""Debian packages: what a set of them needs on an empty system, and the index of a repository."""

from __future__ import annotations

import gzip
import hashlib
import os
import re
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import unquote

from splitrail.bundle.manifest import BundleError
from splitrail.lab import apt as machine
from splitrail.lab.run import LabError

# What mmdebstrap's variant minbase installs beside what it is told.
BOOTSTRAP = ("?essential", "?priority(required)", "apt")
_URI = re.compile(r"^'(?P<url>[^']+)' (?P<file>\S+) (?P<bytes>\d+)")


@dataclass(frozen=True)
class Deb:
    """One package: its paragraph of the index as its archive has it, and where it lies."""

    package: str
    version: str
    architecture: str
    sha256: str
    bytes: int
    url: str
    stanza: str

    @property
    def file(self) -> str:
        """Its name in the pool; an epoch's colon would be a port in a URL."""
        return f"{self.package}_{self.version.replace(':', '%3a')}_{self.architecture}.deb".replace(
            "%3a", "."
        )


class Apt:
    """APT on an empty system of ``suite``, with this machine's sources or those of ``sources`` (deb822)."""

    def __init__(self, root: Path, suite: str, sources: str | None) -> None:
        self.suite = suite
        self._environment = {**os.environ, "APT_CONFIG": str(root / "apt.conf"), "LC_ALL": "C.UTF-8"}
        for folder in (
            "etc/apt/apt.conf.d",
            "etc/apt/preferences.d",
            "etc/apt/sources.list.d",
            "var/lib/apt/lists/partial",
            "var/lib/dpkg",
            "var/cache/apt/archives/partial",
        ):
            (root / folder).mkdir(parents=True, exist_ok=True)
        options = ""
        if sources is None:
            try:
                own = machine.from_machine(suite)
            except LabError as error:
                raise BundleError(f"{error}, or name a file of sources with --apt-sources") from error
            sources, options = own.sources, own.options
        (root / "etc/apt/sources.list.d/bundle.sources").write_text(sources, encoding="utf-8")
        (root / "var/lib/dpkg/status").write_text("", encoding="utf-8")
        (root / "apt.conf").write_text(
            f'Dir "{root}";\nDir::State::status "{root}/var/lib/dpkg/status";\n'
            'Dir::Etc::trustedparts "/etc/apt/trusted.gpg.d";\n'
            'APT::Architecture "amd64";\nAPT::Architectures { "amd64"; };\nAPT::Sandbox::User "root";\n'
            'APT::Install-Recommends "false";\nAcquire::Languages "none";\nAcquire::Retries "3";\n' + options,
            encoding="utf-8",
        )

    def update(self) -> None:
        """Read the archives' indexes. Raises BundleError when one cannot be had or is not signed well."""
        done = self._run("apt-get", "update", "--error-on=any")
        if done.returncode:
            faults = [line for line in done.stderr.splitlines() if line.startswith(("E:", "W:"))]
            raise BundleError(
                [f"APT's sources of {self.suite}: {line[2:].strip()}" for line in faults]
                or [f"apt-get update: {done.stderr.strip()}"],
                1,
            )

    def missing(self, packages: set[str]) -> list[str]:
        """Those that no source has."""
        return sorted(packages - set(self._run("apt-cache", "pkgnames").stdout.split()))

    def closure(self, packages: set[str], *, bootstrap: bool = False) -> list[Deb]:
        """The packages and all they need; with ``bootstrap`` a whole small system. Raises BundleError."""
        names = [*(BOOTSTRAP if bootstrap else ()), *sorted(packages)]
        done = self._run("apt-get", "--print-uris", "--quiet=2", "--yes", "install", *names)
        if done.returncode:
            said = " ".join(done.stdout.split() + done.stderr.split())
            raise BundleError(f"APT cannot install {', '.join(sorted(packages))} of {self.suite}: {said}", 1)
        urls = {
            Path(unquote(match["file"])).name: match["url"]
            for line in done.stdout.splitlines()
            if (match := _URI.match(line))
        }
        wanted = [Path(name).stem.split("_") for name in urls]
        shown = self._run(
            "apt-cache", "show", *(f"{name}:{arch}={unquote(version)}" for name, version, arch in wanted)
        )
        debs = {deb.url: deb for deb in _stanzas(shown.stdout, urls)}
        if lost := sorted(set(urls.values()) - set(debs)):
            raise BundleError(f"APT's index of {self.suite} lacks a checksum of: {', '.join(lost)}", 1)
        return sorted(debs.values(), key=lambda deb: deb.file)

    def _run(self, *argv: str) -> subprocess.CompletedProcess[str]:
        try:
            return subprocess.run(argv, capture_output=True, text=True, env=self._environment, check=False)
        except FileNotFoundError as error:
            raise BundleError(
                f"{argv[0]} is not here: make the bundle on a Debian or Ubuntu machine"
            ) from error


@contextmanager
def empty_system(suite: str, sources: str | None = None) -> Iterator[Apt]:
    """APT on a system with nothing installed, its indexes read; this machine's own APT is left as it is."""
    with tempfile.TemporaryDirectory(prefix="splitrail-apt-") as name:
        apt = Apt(Path(name), suite, sources)
        apt.update()
        yield apt


def _stanzas(text: str, urls: dict[str, str]) -> Iterator[Deb]:
    for stanza in re.split(r"\n\n+", text.strip()):
        fields = dict(re.findall(r"^([A-Za-z0-9-]+): (.*)$", stanza, re.MULTILINE))
        if "SHA256" not in fields:
            continue
        # APT names a file it would keep by package, version with its colon escaped, and architecture.
        name = f"{fields['Package']}_{fields['Version']}_{fields['Architecture']}.deb"
        url = urls.get(name) or urls.get(name.replace(":", "%3a"))
        if url:
            yield Deb(
                fields["Package"],
                fields["Version"],
                fields["Architecture"],
                fields["SHA256"],
                int(fields["Size"]),
                url,
                stanza,
            )


def index(debs: list[Deb], suite: str) -> dict[str, bytes]:
    """The files of a repository of these packages but for the signature, by path below its root."""
    packages = "\n\n".join(
        re.sub(r"^Filename: .*$", f"Filename: pool/{deb.file}", deb.stanza, count=1, flags=re.MULTILINE)
        for deb in debs
    )
    folder = f"dists/{suite}"
    plain = (packages + "\n").encode()
    # No time of day in it: the same packages make the same file.
    lists = {
        "main/binary-amd64/Packages": plain,
        "main/binary-amd64/Packages.gz": gzip.compress(plain, mtime=0),
    }
    sums = "".join(
        f" {hashlib.sha256(data).hexdigest()} {len(data)} {name}\n" for name, data in lists.items()
    )
    release = (
        f"Origin: splitrail\nLabel: splitrail bundle\nSuite: {suite}\nCodename: {suite}\n"
        f"Date: {time.strftime('%a, %d %b %Y %H:%M:%S UTC', time.gmtime())}\n"
        f"Architectures: amd64\nComponents: main\nDescription: What a release needs, without a network\n"
        f"SHA256:\n{sums}"
    )
    return {f"{folder}/{name}": data for name, data in lists.items()} | {
        f"{folder}/Release": release.encode()
    }
