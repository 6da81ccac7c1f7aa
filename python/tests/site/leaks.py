"""Where a secret shows that nobody should see: in processes, logs, commands' outputs and files.

Run as a program it is a node's part: it reads one JSON object from standard input, ``{"secrets": {NAME:
TEXT}, "folders": [PATH, ...], "commands": {NAME: ARGUMENTS}}``, and prints the places as a JSON list.
Standard library only, and no secret on a command line, which would itself be a place.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

# What is shorter shows everywhere by chance.
SHORTEST = 16
# Larger files are weights and images, not what somebody wrote down.
LARGEST = 1 << 26
# Others than the owner may do something with the file.
OTHERS = 0o077


def leaks(
    secrets: Mapping[str, str], *, proc: Path, folders: Iterable[Path], outputs: Mapping[str, bytes]
) -> list[str]:
    """``PLACE: NAME`` for each secret and place where it shows, in order.

    ``secrets``: their texts by name. ``proc``: a /proc, whose processes' arguments and environment are read.
    ``folders``: those whose files are read, but for files that only their owner may use; in folders of units
    and of run records (``systemd``, ``runs``) these too. ``outputs``: what commands printed, by their names.

    Raises ValueError where there is nothing to look for or a secret is shorter than SHORTEST.
    """
    wanted = {name: text.strip().encode() for name, text in secrets.items()}
    if not wanted or any(len(text) < SHORTEST for text in wanted.values()):
        raise ValueError(f"secrets of {SHORTEST} characters or more are needed: {', '.join(wanted)}")
    places = [*outputs.items(), *_processes(proc), *_files(folders)]
    return sorted(
        f"{place}: {name}" for place, held in places for name, text in wanted.items() if text in held
    )


def _processes(proc: Path) -> Iterator[tuple[str, bytes]]:
    for process in proc.glob("[0-9]*"):
        for name in ("cmdline", "environ"):
            yield from _read(process / name)


def _files(folders: Iterable[Path]) -> Iterator[tuple[str, bytes]]:
    for top in folders:
        for folder, _, names in os.walk(top):
            named = {"systemd", "runs"} & set(Path(folder).parts)
            for name in names:
                path = Path(folder, name)
                try:
                    stat = path.lstat()
                except OSError:
                    continue
                usual = path.is_file() and not path.is_symlink() and stat.st_size <= LARGEST
                if usual and (named or stat.st_mode & OTHERS):
                    yield from _read(path)


def _read(path: Path) -> Iterator[tuple[str, bytes]]:
    try:
        yield str(path), path.read_bytes()
    except OSError:
        return  # it is gone, as processes and temporary files may be


def main() -> None:
    """A node's part."""
    asked: dict[str, Any] = json.load(sys.stdin)
    outputs = {
        name: subprocess.run(arguments, capture_output=True, check=True).stdout
        for name, arguments in asked["commands"].items()
    }
    found = leaks(asked["secrets"], proc=Path("/proc"), folders=map(Path, asked["folders"]), outputs=outputs)
    sys.stdout.write(json.dumps(found) + "\n")


if __name__ == "__main__":
    main()
