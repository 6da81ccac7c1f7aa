"""Where the lab keeps what it made, and the locks that keep two commands apart."""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from splitrail.lab.files import write
from splitrail.lab.run import LabError
from splitrail.lab.spec import Lab

_STATE = Path("/var/lib/splitrail/lab")
_RUN = Path("/run/splitrail")


def cache() -> Path:
    """The folder of what is kept between labs: root file systems, images, packages.

    Raises LabError when SPLITRAIL_CACHE is no absolute path, or one that overlayfs cannot name.
    """
    path = Path(os.environ.get("SPLITRAIL_CACHE") or "/var/cache/splitrail")
    if not path.is_absolute() or set(str(path)) & set(":,\\"):
        raise LabError(f"SPLITRAIL_CACHE={path}: set it to an absolute path without any of : , \\")
    return path


@dataclass(frozen=True)
class State:
    """The folder of one lab under /var/lib."""

    lab: str
    root: Path = _STATE

    @property
    def folder(self) -> Path:
        """Where this lab's nodes and record lie."""
        return self.root / self.lab

    def node(self, name: str) -> Path:
        """Where the node `name` lies."""
        return self.folder / name

    def nodes(self) -> list[str]:
        """Names of the nodes that have a folder, whatever the inventory says today."""
        if not self.folder.is_dir():
            return []
        return sorted(entry.name for entry in self.folder.iterdir() if entry.is_dir())

    def others(self) -> list[str]:
        """Names of the other labs on this host."""
        if not self.root.is_dir():
            return []
        return sorted(
            entry.name for entry in self.root.iterdir() if entry.is_dir() and entry.name != self.lab
        )

    def record(self) -> dict[str, Any] | None:
        """What `claim` wrote, None when there is no such lab."""
        try:
            data: dict[str, Any] = json.loads((self.folder / "lab.json").read_text())
        except FileNotFoundError:
            return None
        return data

    def claim(self, lab: Lab) -> None:
        """Take the lab's name for this inventory before anything else is made.

        Raises LabError when another inventory's lab has that name, or when a standing lab's network changed.
        """
        mine = {
            "kind": lab.kind,
            "key": str(lab.key),
            "cache": str(cache()),
            "network": str(lab.network),
            "bridge": lab.bridge,
        }
        record = self.record()
        if record is None:
            write(self.folder / "lab.json", json.dumps(mine) + "\n")
            return
        if record["key"] != mine["key"]:
            raise LabError(
                f"{lab.inventory}: another inventory's lab is called `{lab.name}` (key {record['key']}); "
                f"take that one down, or set another lab_name and lab_network"
            )
        if record["cache"] != mine["cache"]:
            raise LabError(
                f"the lab stands on the cache {record['cache']}, and SPLITRAIL_CACHE says {mine['cache']}; "
                f"set it back, or run `splitrail lab down` first"
            )
        if record.get("kind", "container") != mine["kind"]:
            raise LabError(
                f"{lab.inventory}: lab_kind is {lab.kind}, and the lab's nodes are of another kind; "
                f"run `splitrail lab down` first"
            )
        if record["network"] != mine["network"]:
            raise LabError(
                f"{lab.inventory}: lab_network is {lab.network}, and the lab stands on {record['network']}; "
                f"run `splitrail lab down` first"
            )


@contextmanager
def locked(name: str, waiting: Callable[[str], None], folder: Path = _RUN) -> Iterator[Path]:
    """Hold the lock `name`, so that two commands never change one lab at once; yields the lock's file.

    `waiting` is told when somebody else holds it. Whoever removes the file holds the lock meanwhile: hence
    the second look at what was locked.
    """
    path = folder / f"{name}.lock"
    while True:
        folder.mkdir(parents=True, exist_ok=True)
        try:
            handle = os.open(path, os.O_CREAT | os.O_RDWR, 0o644)
        except FileNotFoundError:
            continue  # the folder went between the two calls
        try:
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                waiting(f"Waiting for another command that works on {path.stem}")
                fcntl.flock(handle, fcntl.LOCK_EX)
            with suppress(FileNotFoundError):
                if path.stat().st_ino == os.fstat(handle).st_ino:
                    yield path
                    return
        finally:
            os.close(handle)


def prune(folder: Path, top: Path) -> None:
    """Remove `folder` and its parents up to `top`, as long as they are empty."""
    while folder.is_relative_to(top):
        try:
            folder.rmdir()
        except FileNotFoundError:
            pass
        except OSError:
            return
        folder = folder.parent
