"""A model on disk: whole under its name, or growing beside it in ``NAME.part`` until it is whole.

A whole model bears a mark (``.splitrail-model``): its manifest, and size and time of each file, by which a
later look finds what was touched without reading it again. A part keeps a journal of the chunks it has.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
import threading
from contextlib import suppress
from pathlib import Path
from typing import Any

from .manifest import BLOCK, Chunk, File, Manifest, ManifestError, digest_of

MARK = ".splitrail-model"
JOURNAL = ".splitrail-journal"
LINKED = "linked"  # in place of a chunk's digest: its whole file was read and compared
HEX_DIGITS = 64  # of SHA-256


class PartError(Exception):
    """The model cannot be finished; the message says what to do."""


def read_mark(folder: Path) -> tuple[Manifest, dict[str, list[int]]] | None:
    """Manifest and stamps of a whole model; None of a folder that bears no mark, or none that can be read."""
    try:
        raw = json.loads((folder / MARK).read_text(encoding="utf-8"))
        return Manifest.from_dict(raw["manifest"]), dict(raw["stamps"])
    except (OSError, ValueError, KeyError, TypeError, ManifestError):
        return None


def stamp(path: Path) -> list[int]:
    """Size and time of change of a file. Raises OSError."""
    found = path.stat()
    return [found.st_size, found.st_mtime_ns]


def lacking(folder: Path, manifest: Manifest, *, rehash: bool = False) -> list[File]:
    """Files that the folder does not hold as the manifest has them.

    One with the mark's stamp is believed, another of the right size is read and compared; rehash: all are.
    """
    mark = read_mark(folder)
    known = {file.path: file.digest for file in mark[0].files} if mark else {}
    return [file for file in manifest.files if not _holds(folder, file, mark, known, rehash)]


def _holds(folder: Path, file: File, mark: Any, known: dict[str, str], rehash: bool) -> bool:
    path = folder / file.path
    try:
        found = stamp(path)
        if found[0] != file.size:
            return False
        if not rehash and mark and known.get(file.path) == file.digest and mark[1].get(file.path) == found:
            return True
        return digest_of(path, file.digest) == file.digest
    except OSError:
        return False


def is_whole(folder: Path, manifest: Manifest, *, rehash: bool = False) -> bool:
    """Whether the folder bears this manifest's mark and holds all of its files."""
    mark = read_mark(folder)
    return bool(mark and mark[0].digest == manifest.digest and not lacking(folder, manifest, rehash=rehash))


def part_of(folder: Path) -> Path:
    """Where a model grows until it gets its name."""
    return folder.with_name(f"{folder.name}.part")


def bytes_needed(folder: Path, manifest: Manifest) -> int:
    """Bytes that finishing the model will still take of the disk; files that can be linked take none."""
    part, mark = part_of(folder), read_mark(folder)
    known = {file.path: file.digest for file in mark[0].files} if mark else {}
    needed = 0
    for file in manifest.files:
        with suppress(OSError):
            # Of an unmarked file the size must do here: reading it is the agent's work.
            at_hand = (folder / file.path).stat().st_size == file.size
            if at_hand and known.get(file.path, file.digest) == file.digest:
                continue
        with suppress(OSError):
            needed -= min(file.size, 512 * (part / file.path).stat().st_blocks)
        needed += file.size
    return needed


class Part:
    """The model of a manifest as it grows on this node. Safe for threads."""

    def __init__(self, folder: Path, manifest: Manifest, chunk_bytes: int, *, rehash: bool = False) -> None:
        """Take up what an earlier attempt left, and reserve the space. rehash: see lacking().

        Raises OSError, also for a full disk.
        """
        self.folder, self.manifest, self._rehash = folder, manifest, rehash
        self.chunks: list[Chunk] = manifest.chunks(chunk_bytes)
        self.root = part_of(folder)
        self.have: set[int] = set()
        self.digests: dict[int, str] = {}
        self._lock = threading.Lock()
        self.whole = is_whole(folder, manifest, rehash=rehash)
        if self.whole:
            self.root, self.have = folder, set(range(len(self.chunks)))
            return
        self._header = json.dumps({"manifest": manifest.digest, "chunk_bytes": chunk_bytes})
        self._resume()

    def _resume(self) -> None:
        lines = []
        with suppress(OSError):
            lines = (self.root / JOURNAL).read_text(encoding="ascii", errors="replace").splitlines()
        if not lines or lines[0] != self._header:
            # Another model's, or another cut's. It never had a name, so nobody uses it.
            shutil.rmtree(self.root, ignore_errors=True)
            self.root.mkdir(parents=True, mode=0o755)
            self._link(self.folder)
            self._write_journal(self.have)
        for line in lines[1:] if lines and lines[0] == self._header else []:
            index, _, digest = line.partition(" ")
            # A line that a crash cut short is a chunk that is fetched again.
            if (
                index.isdecimal()
                and int(index) < len(self.chunks)
                and len(digest) == hashlib.sha256().digest_size * 2
            ):
                self.have.add(int(index))
                self.digests[int(index)] = digest
        lacking_paths = {self.chunks[index].file.path for index in self.missing()}
        for file in self.manifest.files:
            path = self.root / file.path
            if file.path in lacking_paths and path.exists() and path.stat().st_nlink > 1:
                path.unlink()  # writing to it would alter the folder that it was linked from
            self._reserve(file)

    def _link(self, old: Path) -> None:
        """Take over files that lie under the model's name and are the ones wanted: no byte is copied."""
        lost = {file.path for file in lacking(old, self.manifest, rehash=self._rehash)}
        taken = {file.path for file in self.manifest.files} - lost
        for path in sorted(taken):
            target = self.root / path
            target.parent.mkdir(parents=True, exist_ok=True)
            try:
                os.link(old / path, target)
            except OSError as error:
                if error.errno not in (errno.EXDEV, errno.EPERM, errno.EMLINK):
                    raise
                taken.discard(path)
        self.have |= {index for index, chunk in enumerate(self.chunks) if chunk.file.path in taken}

    def _reserve(self, file: File) -> None:
        path = self.root / file.path
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.exists() and path.stat().st_size == file.size:
            return
        with path.open("ab") as target:
            if file.size:
                os.posix_fallocate(target.fileno(), 0, file.size)

    def _write_journal(self, have: set[int]) -> None:
        text = "".join(f"{index} {self.digests.get(index, LINKED)}\n" for index in sorted(have))
        fresh = self.root / f"{JOURNAL}.new"
        fresh.write_text(f"{self._header}\n{text}", encoding="ascii")
        fresh.replace(self.root / JOURNAL)

    def missing(self) -> list[int]:
        """Numbers of the chunks that are not here."""
        with self._lock:
            return [index for index in range(len(self.chunks)) if index not in self.have]

    def path(self, index: int) -> Path:
        """The file that a chunk belongs to."""
        return self.root / self.chunks[index].file.path

    def digest(self, index: int) -> str:
        """SHA-256 of a chunk as it is here. Raises OSError."""
        if index not in self.digests:
            chunk, total = self.chunks[index], hashlib.sha256()
            with self.path(index).open("rb") as file:
                file.seek(chunk.offset)
                left = chunk.length
                while left and (data := file.read(min(BLOCK, left))):
                    total.update(data)
                    left -= len(data)
            self.digests[index] = total.hexdigest()
        return self.digests[index]

    def note(self, index: int, digest: str) -> None:
        """A chunk is here, its bytes written. Raises OSError."""
        with self._lock:
            with (self.root / JOURNAL).open("a", encoding="ascii") as journal:
                journal.write(f"{index} {digest}\n")
            self.digests[index] = digest
            self.have.add(index)

    def wrong_file(self, file: File) -> str:
        """The digest of a file that is not the manifest's; empty when it is. Raises OSError."""
        found = digest_of(self.root / file.path, file.digest)
        return "" if found == file.digest else found

    def forget(self, files: list[File]) -> None:
        """Have these files fetched anew the next time; until then they are given on. Raises OSError."""
        paths = {file.path for file in files}
        self._write_journal({index for index in self.have if self.chunks[index].file.path not in paths})

    def publish(self) -> None:
        """Give the whole model its name. What bore it before is kept beside it, unless it was the same model.

        Raises OSError.
        """
        for file in self.manifest.files:
            path = self.root / file.path
            path.chmod(0o644)  # engines need not run as root
            with path.open("rb") as written:
                os.fsync(written.fileno())
        stamps = {file.path: stamp(self.root / file.path) for file in self.manifest.files}
        mark = {"manifest": self.manifest.as_dict(), "stamps": stamps}
        (self.root / MARK).write_text(json.dumps(mark), encoding="utf-8")
        old = read_mark(self.folder)
        aside = self._aside(old[0].digest if old else "")
        if self.folder.exists():
            self.folder.rename(aside)
        self.root.rename(self.folder)
        with self._lock:
            self.root, self.whole = self.folder, True
        # Not before: a crash between the two names would leave a part that nobody can take up.
        (self.folder / JOURNAL).unlink()
        if old and old[0].digest == self.manifest.digest:
            shutil.rmtree(aside)

    def _aside(self, digest: str) -> Path:
        """A free name for what bears the model's name now."""
        stem = f"{self.folder.name}.was-{digest[:8] or 'unmarked'}"
        names = [stem, *(f"{stem}-{number}" for number in range(2, 1000))]
        for name in names:
            if not (path := self.folder.with_name(name)).exists():
                return path
        raise PartError(
            f"{self.folder.parent} holds {len(names)} folders like {stem}: remove those nobody uses"
        )
