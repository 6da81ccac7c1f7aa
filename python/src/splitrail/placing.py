"""Put one rendered file of one host into its place; apart from `splitrail.render` because each task of a
rendering imports it in a process of its own, and the rest is slow to import."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path, PurePosixPath

# Where a rendering that is under way notes what it wrote, a file a host: hosts render side by side.
NOTES = ".notes"


class RenderError(Exception):
    """Nothing was rendered; the message names what is wrong."""


def place(root: Path, host: str, dest: str, *, role: str, mode: str, content: str) -> None:
    """Write one file of one host and note it; called by the action ``splitrail_render``.

    Raises RenderError for a path that is not absolute or leaves the host's folder, and for a file that
    another role has placed already.
    """
    path = PurePosixPath(dest)
    if not path.is_absolute() or ".." in path.parts:
        raise RenderError(
            f"{host}: {role or 'a play'} would place {dest!r}: write an absolute path without .."
        )
    if not host or "/" in host or host.startswith("."):
        raise RenderError(f"{host!r} cannot name a folder: rename the host in the inventory")
    file = root / host / path.relative_to("/")
    if file.exists():
        raise RenderError(f"{host}: {role or 'a play'} would place {dest}, which another role places already")
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(content, encoding="utf-8")
    note = {
        "host": host,
        "path": dest,
        "mode": mode,
        "role": role,
        "sha256": hashlib.sha256(content.encode()).hexdigest(),
    }
    notes = root / NOTES
    notes.mkdir(exist_ok=True)
    with (notes / host).open("a", encoding="utf-8") as stream:
        stream.write(json.dumps(note) + "\n")
