"""This machine's own APT sources, keys and options, rewritten for a node."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from splitrail.lab.run import LabError, run

_POCKETS = ("", "-updates", "-security", "-backports")
_SCHEMES = ("http://", "https://", "mirror://", "mirror+http://", "mirror+https://", "mirror+file:")
_OPTION = re.compile(r'^(Acquire::(?:http|https|Retries|ForceIPv4|ForceIPv6|Check-Valid-Until)\S*) "(.+)";$')
# Programs of this machine that find a proxy: a node does not have them.
_PROGRAMS = re.compile(r"Proxy-?Auto-?Detect", re.IGNORECASE)


@dataclass(frozen=True)
class Source:
    """One entry of a sources list in the fields of deb822."""

    fields: tuple[tuple[str, str], ...]

    def get(self, name: str) -> str:
        """A field's value, empty when it is absent; names are matched without case."""
        return next((value for key, value in self.fields if key.lower() == name.lower()), "")

    def with_field(self, name: str, value: str) -> Source:
        """The same entry with one field replaced."""
        return Source(tuple((k, value if k.lower() == name.lower() else v) for k, v in self.fields))

    def render(self) -> str:
        """The entry as a deb822 paragraph."""
        return "".join(f"{key}: {value}\n" for key, value in self.fields)


@dataclass(frozen=True)
class AptConfig:
    """All that APT in a node needs: sources (deb822), options, and files by absolute path."""

    sources: str
    options: str
    files: dict[str, bytes]


def parse_list(text: str) -> list[Source]:
    """Entries of a one-line-style file (`deb [options] uri suite component ...`)."""
    found = []
    for line in text.splitlines():
        words = line.partition("#")[0].strip()
        match = re.match(r"^(deb|deb-src)\s+(?:\[([^\]]*)\]\s+)?(\S+)\s+(\S+)\s*(.*)$", words)
        if not match:
            continue
        kind, options, uri, suite, components = match.groups()
        fields = [
            ("Types", kind),
            ("URIs", uri),
            ("Suites", suite),
            ("Components", " ".join(components.split())),
        ]
        names = {"arch": "Architectures", "lang": "Languages", "target": "Targets"}
        for option in (options or "").split():
            key, _, value = option.partition("=")
            fields.append(
                (names.get(key, key.title()), value.replace(",", " ") if key != "signed-by" else value)
            )
        found.append(Source(tuple(field for field in fields if field[1])))
    return found


def parse_deb822(text: str) -> list[Source]:
    """Entries of a deb822-style file; continuation lines (an inline key) are kept as they stand."""
    found = []
    lines = [line for line in text.splitlines() if not line.startswith("#")]
    for paragraph in re.split(r"\n\s*\n", "\n".join(lines)):
        fields: list[tuple[str, str]] = []
        for line in paragraph.splitlines():
            if line[:1] in (" ", "\t") and fields:
                fields[-1] = (fields[-1][0], f"{fields[-1][1]}\n{line}")
            elif ":" in line:
                key, _, value = line.partition(":")
                fields.append((key.strip(), value.strip()))
        if fields:
            found.append(Source(tuple(fields)))
    return found


def select(sources: Iterable[Source], codename: str) -> list[Source]:
    """The entries that hold the distribution's own packages and that a node can reach over the network."""
    chosen = []
    for source in sources:
        suites = [
            s for s in source.get("Suites").split() if s in {f"{codename}{pocket}" for pocket in _POCKETS}
        ]
        uris = [uri for uri in source.get("URIs").split() if uri.startswith(_SCHEMES)]
        if (
            source.get("Enabled").lower() in ("no", "false", "0")
            or "deb" not in source.get("Types").split()
            or "main" not in source.get("Components").split()
            or not suites
            or not uris
        ):
            continue
        kept = source.with_field("Types", "deb").with_field("Suites", " ".join(suites))
        chosen.append(kept.with_field("URIs", " ".join(uris)))
    return chosen


def options(dump: str) -> str:
    """The lines of `apt-config dump` that decide whether a server is reached (proxies, retries)."""
    kept = [line for line in dump.splitlines() if _OPTION.match(line) and not _PROGRAMS.search(line)]
    return "".join(f"{line}\n" for line in kept)


def from_machine(codename: str, root: Path = Path("/")) -> AptConfig:
    """Read this machine's APT configuration. Raises LabError when it has no usable source for `codename`."""
    etc = root / "etc/apt"
    found: list[Source] = []
    for path in [etc / "sources.list", *sorted((etc / "sources.list.d").glob("*"))]:
        if not path.is_file():
            continue
        if path.suffix == ".list":
            found += parse_list(path.read_text())
        elif path.suffix == ".sources":
            found += parse_deb822(path.read_text())
    chosen = select(found, codename)
    if codename not in {suite for source in chosen for suite in source.get("Suites").split()}:
        raise LabError(
            f"{etc}: no enabled http(s) source has `{codename}` with the component main; "
            f"add this distribution's archive to {etc}/sources.list"
        )
    opts = options(run(["apt-config", "dump"]))
    for scheme in ("http", "https"):
        proxy = os.environ.get(f"{scheme}_proxy")
        if proxy and f"Acquire::{scheme}::Proxy " not in opts:
            opts += f'Acquire::{scheme}::Proxy "{proxy}";\n'
    wanted = {word for source in chosen for word in source.get("Signed-By").split() if word.startswith("/")}
    wanted |= {match.group(2) for line in opts.splitlines() if (match := _OPTION.match(line))}
    for source in chosen:
        uris = source.get("URIs").split()
        wanted |= {"/" + uri.partition(":")[2].lstrip("/") for uri in uris if uri.startswith("mirror+file:")}
    for pattern in ("auth.conf", "auth.conf.d/*.conf", "trusted.gpg.d/*"):
        # A distribution's own keys come with its keyring package, whose files dpkg wants to write itself.
        wanted |= {str(p) for p in etc.glob(pattern) if not p.name.startswith(("debian-", "ubuntu-"))}
    files = {
        path: Path(path).read_bytes()
        for path in sorted(wanted)
        if path.startswith("/") and Path(path).is_file()
    }
    return AptConfig("\n".join(source.render() for source in chosen), opts, files)
