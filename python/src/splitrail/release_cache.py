"""Releases that were checked, by their text: variables are looked up once a use and host."""

from __future__ import annotations

import json
from functools import lru_cache
from pathlib import Path

import yaml

from splitrail.release import Release, ReleaseError, parse


@lru_cache(maxsize=32)
def checked(text: str, where: str) -> Release:
    """The release of this JSON text. Raises ReleaseError with every fault."""
    return parse(json.loads(text), where)


def preload(folder: Path) -> int:
    """Check every release of a folder, so that forks of this process find it done; returns how many are good.
    One that is not is left to whoever names it."""
    good = 0
    for path in sorted(folder.glob("*.yml")):
        try:
            checked(json.dumps(yaml.safe_load(path.read_text(encoding="utf-8"))), path.name)
        except (OSError, UnicodeDecodeError, ReleaseError, TypeError, yaml.YAMLError):
            continue
        good += 1
    return good
