"""Wheels: which files pip would take for a lock, from this machine's indexes, for the image's Python."""

from __future__ import annotations

import json
import platform
import re
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import unquote, urlsplit

from splitrail.bundle.manifest import BundleError

_NONE = re.compile(r"No matching distribution found for (\S+)")
# Names of glibc's generations before they were numbered (PEP 513, 571, 599).
_OLD = ("manylinux1_x86_64", "manylinux2010_x86_64", "manylinux2014_x86_64")


@dataclass(frozen=True)
class Wheel:
    """One file, and the name==version that it answers."""

    name: str
    version: str
    file: str
    url: str
    sha256: str


def resolve(lock: list[str], python: str, glibc: str = "", extra_index: str = "") -> list[Wheel]:
    """The wheels of a whole lock (nothing is resolved beside it) for CPython ``python`` on x86_64.

    ``glibc``: the newest that they may want, as a platform tag; by default this machine's. Raises BundleError
    naming every requirement that no index has as a wheel, or has without a sha256.
    """
    wanted, lost = list(lock), []
    while True:
        report, said = _report(wanted, python, glibc, extra_index)
        if report is not None:
            break
        match = _NONE.search(said)
        if not match or match[1] not in wanted:
            raise BundleError(f"pip cannot resolve the lock: {said.strip()}", 1)
        # pip stops at the first: without it, it names the next.
        lost.append(match[1])
        wanted.remove(match[1])
    if lost:
        raise BundleError(
            [
                f"wheel {name}: no index of this machine has it for Python {python} on x86_64: see `pip "
                "config list`, or correct the release"
                for name in lost
            ],
            1,
        )
    found = [_wheel(entry) for entry in report["install"]] if wanted else []
    if unsummed := [wheel.name for wheel in found if not wheel.sha256]:
        raise BundleError([f"wheel {name}: its index gives no sha256" for name in unsummed], 1)
    return sorted(found, key=lambda wheel: wheel.file)


def normalized(name: str) -> str:
    """A project's name as PEP 503 spells it."""
    return re.sub(r"[-_.]+", "-", name).lower()


def certificates() -> str | None:
    """The certificate authorities that pip is configured to trust, or None."""
    done = subprocess.run(
        [sys.executable, "-m", "pip", "config", "get", "global.cert"],
        capture_output=True,
        text=True,
        check=False,
    )
    path = done.stdout.strip()
    return path if path and Path(path).is_file() else None


def _report(
    wanted: list[str], python: str, glibc: str, extra_index: str
) -> tuple[dict[str, list[dict[str, dict[str, object]]]] | None, str]:
    """pip's report of what it would install, or what it said instead."""
    with tempfile.TemporaryDirectory(prefix="splitrail-wheels-") as name:
        lock = Path(name) / "requirements.lock"
        lock.write_text("\n".join(wanted) + "\n", encoding="utf-8")
        out = Path(name) / "report.json"
        done = subprocess.run(
            [
                *(sys.executable, "-m", "pip", "install", "--dry-run", "--ignore-installed", "--no-deps"),
                *("--quiet", "--no-input", "--disable-pip-version-check", "--no-warn-conflicts"),
                *("--only-binary=:all:", f"--target={name}/none", f"--report={out}", f"--requirement={lock}"),
                *("--implementation=cp", f"--python-version={python}"),
                *(f"--abi={abi}" for abi in (f"cp{python.replace('.', '')}", "abi3", "none")),
                *(f"--platform={tag}" for tag in _platforms(glibc)),
                *([f"--extra-index-url={extra_index}"] if extra_index else []),
            ],
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode:
            return None, done.stderr
        return json.loads(out.read_text(encoding="utf-8")), ""


def _platforms(glibc: str) -> list[str]:
    """Platform tags, the newest glibc first."""
    newest = int(glibc.split("_")[2] if glibc else platform.libc_ver()[1].split(".")[1])
    return [
        *(f"manylinux_2_{minor}_x86_64" for minor in range(newest, 4, -1)),
        *reversed(_OLD),
        "linux_x86_64",
    ]


def _wheel(entry: dict[str, dict[str, object]]) -> Wheel:
    url = str(entry["download_info"]["url"])
    archive = entry["download_info"].get("archive_info", {})
    hashes = archive.get("hashes", {}) if isinstance(archive, dict) else {}
    return Wheel(
        normalized(str(entry["metadata"]["name"])),
        str(entry["metadata"]["version"]),
        unquote(Path(urlsplit(url).path).name),
        url.partition("#")[0],
        str(hashes.get("sha256", "")),
    )
