"""Files by what is in them: ``blobs/sha256/ab/ab12...``; what is not whole lies in ``partial/``."""

from __future__ import annotations

import errno
import fcntl
import hashlib
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from splitrail.bundle.manifest import BundleError

CHUNK = 1 << 20


class Store:
    """The files of one bundle. A blob has its name only when it is whole and its digest is right."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def blob(self, sha256: str) -> Path:
        """Where the content of that digest lies, or would."""
        return self.root / "blobs/sha256" / sha256[:2] / sha256

    def partial(self, sha256: str) -> Path:
        """Where a download of that content goes on."""
        return self.root / "partial" / sha256

    def has(self, sha256: str) -> bool:
        """Whether the content is here; it was checked when it came. ``bundle verify`` checks it again."""
        return self.blob(sha256).is_file()

    def put(self, content: bytes) -> str:
        """Keep bytes; returns their digest."""
        digest = hashlib.sha256(content).hexdigest()
        if not self.has(digest):
            part = self.partial(digest)
            part.parent.mkdir(parents=True, exist_ok=True)
            part.write_bytes(content)
            self.adopt(part, digest)
        return digest

    def adopt(self, path: Path, sha256: str) -> None:
        """Give a file of this file system, whose digest the caller has checked, its name."""
        target = self.blob(sha256)
        target.parent.mkdir(parents=True, exist_ok=True)
        path.chmod(0o644)
        path.replace(target)

    def blobs(self) -> Iterator[Path]:
        """Every file that lies where blobs do, whatever its name."""
        folder = self.root / "blobs"
        return (
            (path for path in sorted(folder.rglob("*")) if not path.is_dir()) if folder.is_dir() else iter(())
        )

    def prune(self, wanted: set[str]) -> int:
        """Remove blobs of other digests, and all that is not whole; returns how many blobs went."""
        gone = [path for path in self.blobs() if path.name not in wanted or path != self.blob(path.name)]
        for path in gone:
            path.unlink()
        shutil.rmtree(self.root / "partial", ignore_errors=True)
        return len(gone)

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Keep another ``bundle create`` out of this folder. Raises BundleError when one is at work."""
        self.root.mkdir(parents=True, exist_ok=True)
        with (self.root / ".lock").open("w") as handle:
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                raise BundleError(
                    f"{self.root}: another `bundle create` is at work there: wait for it"
                ) from error
            yield


def digest_of(path: Path) -> str:
    """The sha256 of a file, in hexadecimal. Raises OSError."""
    digest = hashlib.sha256()
    with path.open("rb") as stream:
        while block := stream.read(CHUNK):
            digest.update(block)
    return digest.hexdigest()


def refuse_full(folder: Path, needed: int) -> None:
    """Raise BundleError unless ``needed`` bytes and a twentieth more are free where ``folder`` will be."""
    there = folder
    while not there.exists():
        there = there.parent
    free = shutil.disk_usage(there).free
    if free < needed * 1.05:
        raise BundleError(
            f"{folder}: {needed / 2**30:.2f} GiB are still to be fetched, {free / 2**30:.2f} GiB are free: "
            "free space there, or name another folder with --out. Nothing was fetched"
        )


def explain(error: OSError, path: Path) -> str:
    """What an error of the file system means for a fetch under way."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return (
            f"{path}: the disk is full: free space there and run the same again; it goes on where it stopped"
        )
    return f"{path}: {error.strerror or error}"
