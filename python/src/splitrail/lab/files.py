"""Small file operations that leave nothing half-written."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

from splitrail.lab.run import run


def write(path: Path, text: str, *, mode: int = 0o644, owner: tuple[int, int] | None = None) -> None:
    """Put `text` at `path` in one step.

    The name is replaced, never followed: a node's /etc/resolv.conf may be a link that, from here, leads to
    this host's own.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "w") as stream:
            stream.write(text)
            os.fchmod(handle, mode)
            if owner:
                os.fchown(handle, *owner)
        Path(name).replace(path)
    except BaseException:
        Path(name).unlink()
        raise


def remove_tree(path: Path) -> None:
    """Remove `path` and all below it; never what is mounted there, since that is not the lab's to empty."""
    if path.exists():
        run(["rm", "-rf", "--one-file-system", "--", str(path)])
