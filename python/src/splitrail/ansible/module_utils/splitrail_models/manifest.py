"""What belongs to a model: files with sizes and digests, cut into chunks that every node numbers alike."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from fnmatch import fnmatchcase
from functools import cached_property
from pathlib import Path, PurePosixPath
from typing import Any

BLOCK = 1 << 20
_DIGEST = re.compile(r"^(sha256:[0-9a-f]{64}|git-sha1:[0-9a-f]{40})$")


class ManifestError(Exception):
    """A list of files that cannot be trusted or used; the message names the file."""


@dataclass(frozen=True)
class File:
    """A file of the model.

    path: relative, with ``/``. size: bytes. digest: ``sha256:HEX``, or ``git-sha1:HEX`` where the hub knows
    no other (small files that it keeps in git: SHA-1 over ``blob SIZE NUL`` and the content).
    """

    path: str
    size: int
    digest: str

    def __post_init__(self) -> None:
        parts = PurePosixPath(self.path).parts
        if not parts or parts[0] == "/" or ".." in parts or "\0" in self.path or "\n" in self.path:
            raise ManifestError(f"{self.path!r} is no path below the model's folder")
        if not isinstance(self.size, int) or self.size < 0:
            raise ManifestError(f"{self.path}: {self.size!r} is no size")
        if not _DIGEST.match(self.digest):
            raise ManifestError(
                f"{self.path}: {self.digest!r} is neither sha256: nor git-sha1: with its digits"
            )


@dataclass(frozen=True)
class Chunk:
    """A range of a file, the piece in which nodes pass a model on. offset, length: bytes."""

    file: File
    offset: int
    length: int


@dataclass(frozen=True)
class Manifest:
    """All files of one model, sorted by path. identity: where it comes from, at which revision."""

    identity: str
    files: tuple[File, ...]

    def __post_init__(self) -> None:
        paths = [file.path for file in self.files]
        if not paths:
            raise ManifestError(f"{self.identity}: no file of it is wanted")
        if paths != sorted(set(paths)):
            raise ManifestError(f"{self.identity}: its files are not each named once, in order")

    @classmethod
    def made_of(cls, identity: str, files: Iterable[File]) -> Manifest:
        """A manifest of files in any order. Raises ManifestError."""
        return cls(identity, tuple(sorted(files, key=lambda file: file.path)))

    @classmethod
    def from_dict(cls, raw: Any) -> Manifest:
        """What as_dict() gave. Raises ManifestError."""
        try:
            return cls(str(raw["identity"]), tuple(File(**each) for each in raw["files"]))
        except (KeyError, TypeError) as error:
            raise ManifestError(f"not a model's manifest: {error}") from error

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)

    @property
    def size(self) -> int:
        """Bytes of all files."""
        return sum(file.size for file in self.files)

    @cached_property
    def digest(self) -> str:
        """SHA-256 of the manifest itself: nodes with the same one speak of the same bytes."""
        return hashlib.sha256(json.dumps(self.as_dict(), sort_keys=True).encode()).hexdigest()

    def chunks(self, length: int) -> list[Chunk]:
        """The model in pieces of at most ``length`` bytes; an empty file has none."""
        return [
            Chunk(file, offset, min(length, file.size - offset))
            for file in self.files
            for offset in range(0, file.size, length)
        ]


def wanted(path: str, patterns: Iterable[str]) -> bool:
    """Whether a file is to be brought. A pattern without ``/`` is of files that lie in no subfolder."""
    return any(fnmatchcase(path, each) for each in patterns if path.count("/") == each.count("/"))


def digest_of(path: Path, like: str) -> str:
    """The digest of a file, of the kind that ``like`` is. Raises OSError."""
    kind = like.partition(":")[0]
    if kind == "sha256":
        total = hashlib.sha256()
    else:
        # What git itself uses; not a defence, but the hub gives nothing better for these few small files.
        total = hashlib.sha1(f"blob {path.stat().st_size}\0".encode(), usedforsecurity=False)
    buffer = bytearray(BLOCK)
    view = memoryview(buffer)
    with path.open("rb", buffering=0) as file:
        while got := file.readinto(buffer):
            total.update(view[:got])
    return f"{kind}:{total.hexdigest()}"
