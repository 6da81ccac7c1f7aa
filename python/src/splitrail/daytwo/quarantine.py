"""The hosts of an inventory that are out of service: ``quarantine.yml`` beside its ``hosts.yml``.

The file is data and inventory source in one: it names an inventory plugin of the suite, which takes these
hosts out of every group. So all that is computed of ``groups['all']`` is computed without them, whoever
starts the playbook.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal

import yaml
from pydantic import AwareDatetime, BaseModel, ConfigDict, Field, ValidationError

By = Literal["run", "person", "drain"]
NAME = "quarantine.yml"
VARIABLE = "SPLITRAIL_QUARANTINE"
PLUGIN = "splitrail_quarantine"
_HEAD = """---
# Hosts that every verb leaves out, and why. Written by `splitrail`: `splitrail quarantine release HOST` takes
# one out of it again.
"""


class QuarantineError(Exception):
    """The file cannot be read or written; the message names it and the cure."""


class Evidence(BaseModel):
    """Where a host failed, and what it said; ``record`` is a folder of runs/."""

    model_config = ConfigDict(extra="forbid")

    record: str
    verb: str
    role: str | None = None
    task: str
    message: str


class Entry(BaseModel):
    """Why a host is out of service. ``by``: a run, a person, or a drain."""

    model_config = ConfigDict(extra="forbid")

    reason: str = Field(min_length=1)
    since: AwareDatetime
    by: By = "person"
    evidence: Evidence | None = None

    @classmethod
    def now(cls, reason: str, by: By, evidence: Evidence | None = None) -> Entry:
        """One that begins now."""
        return cls(reason=reason, since=datetime.now(UTC).replace(microsecond=0), by=by, evidence=evidence)


class _File(BaseModel):
    model_config = ConfigDict(extra="forbid")

    plugin: Literal["splitrail_quarantine"]
    hosts: dict[str, Entry] = {}


def file_of(inventory: str | Path) -> Path | None:
    """The file of an inventory, whether it exists or not; None for a list of hosts ("h1,h2")."""
    path = Path(inventory)
    if "," in str(inventory) or not path.exists():
        return None
    return (path if path.is_dir() else path.parent) / NAME


def load(inventory: str | Path) -> dict[str, Entry]:
    """The hosts in quarantine, none where there is no file. Raises QuarantineError."""
    path = file_of(inventory)
    if path is None or not path.exists():
        return {}
    return read(path)


def read(path: Path) -> dict[str, Entry]:
    """The hosts of such a file. Raises QuarantineError with every fault."""
    cure = "correct it, or delete it and put hosts in again: `splitrail quarantine add HOST --reason TEXT`"
    try:
        return _File.model_validate(yaml.safe_load(path.read_text(encoding="utf-8"))).hosts
    except ValidationError as error:
        said = "; ".join(
            f"{'.'.join(map(str, one['loc'])) or 'the file'}: {one['msg']}" for one in error.errors()
        )
        raise QuarantineError(f"{path}: {said}: {cure}") from error
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise QuarantineError(f"{path}: {error}: {cure}") from error


def left_out(hosts: Mapping[str, Entry]) -> dict[str, Entry]:
    """Those of them that a run leaves out now: all, but for what SPLITRAIL_QUARANTINE lets in.

    ``ignore`` lets all in, ``ignore:HOST,HOST`` these: to look at one by hand, and to take it back.
    """
    word, _, names = os.environ.get(VARIABLE, "").partition(":")
    if word != "ignore":
        return dict(hosts)
    return {host: entry for host, entry in hosts.items() if names and host not in names.split(",")}


@contextmanager
def let_in(host: str) -> Iterator[None]:
    """What is started in here sees a host that is in quarantine."""
    before = os.environ.get(VARIABLE)
    os.environ[VARIABLE] = f"ignore:{host}"
    try:
        yield
    finally:
        os.environ.pop(VARIABLE)
        if before is not None:
            os.environ[VARIABLE] = before


def add(inventory: str | Path, entries: Mapping[str, Entry]) -> Path:
    """Put hosts into quarantine; one that is there already gets the new entry. Raises QuarantineError."""
    return _save(inventory, {**load(inventory), **entries})


def release(inventory: str | Path, hosts: Iterable[str]) -> dict[str, Entry]:
    """Take hosts out again and return their entries. Raises QuarantineError for one that is not in it."""
    known = load(inventory)
    gone = {}
    for host in hosts:
        if host not in known:
            there = f"it holds {', '.join(sorted(known))}" if known else "it holds no host"
            raise QuarantineError(f"{host} is not in quarantine: {there}")
        gone[host] = known.pop(host)
    _save(inventory, known)
    return gone


def line(host: str, entry: Entry) -> str:
    """A host and why it is left out, for people."""
    return f"{host} ({entry.reason}; since {entry.since:%Y-%m-%d %H:%M} UTC)"


def _save(inventory: str | Path, hosts: Mapping[str, Entry]) -> Path:
    path = file_of(inventory)
    if path is None:
        raise QuarantineError(
            f"{inventory}: a list of hosts has no place for a quarantine: write an inventory folder"
        )
    try:
        if not hosts:
            path.unlink(missing_ok=True)
            return path
        data = {
            "plugin": PLUGIN,
            "hosts": {
                name: entry.model_dump(mode="json", exclude_none=True)
                for name, entry in sorted(hosts.items())
            },
        }
        # Whole or not at all: a run may read it at this moment. A hidden name, which inventories pass over.
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{NAME}.")
        with os.fdopen(handle, "w", encoding="utf-8") as stream:
            stream.write(_HEAD + yaml.safe_dump(data, sort_keys=False, allow_unicode=True, width=110))
        Path(name).chmod(0o644)
        Path(name).replace(path)
    except OSError as error:
        raise QuarantineError(f"{path}: {error}: make the inventory's folder writable") from error
    return path
