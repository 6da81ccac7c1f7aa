"""Folders of this host that nodes see; for VMs a read-only disk, made anew when one has changed."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

from splitrail.lab.files import remove_tree
from splitrail.lab.report import Reporter
from splitrail.lab.rootfs import locked
from splitrail.lab.run import LabError, run
from splitrail.lab.spec import Lab
from splitrail.lab.state import cache

# ext4's own tables, beside what the files take.
_SPARE_BYTES = 64 << 20
_BLOCK = 4096


def make_sources(lab: Lab) -> None:
    """Make the folders that lie in the cache. Raises LabError for one elsewhere that is not there."""
    for mount in lab.mounts:
        source = cache() / mount.source
        if mount.source.is_absolute() and not source.is_dir():
            raise LabError(f"{lab.inventory}: lab_mounts: {source} is no folder of this host; make it first")
        source.mkdir(parents=True, exist_ok=True)


def disk(source: Path, store: Path, reporter: Reporter) -> Path:
    """The disk of `source`, made now unless one of the same content is in `store`.

    Disks of its former contents go, but for nodes that hold them open. Raises LabError when mkfs fails.
    """
    store.mkdir(parents=True, exist_ok=True)
    prefix = hashlib.sha256(str(source).encode()).hexdigest()[:8]
    with locked(store / ".lock", reporter):
        key, size, files = _survey(source)
        done = store / f"{prefix}-{key}.ext4"
        if not done.exists():
            part = store / f"{prefix}.part"
            remove_tree(part)
            with reporter.step(f"Making a disk of {source}"):
                with part.open("wb") as handle:
                    handle.truncate(size)
                # No journal: it could not be replayed on a disk that nobody may write to.
                options = ["-O", "^has_journal", "-m", "0", "-N", str(files), "-b", str(_BLOCK)]
                run(["mkfs.ext4", "-q", "-F", *options, "-d", str(source), str(part)])
            for old in store.glob(f"{prefix}-*.ext4"):
                old.unlink()
            part.rename(done)
    return done


def _survey(source: Path) -> tuple[str, int, int]:
    """A name for the folder's content, the bytes of a disk that holds it, and its inodes.

    Of a file its size and time are read, not its content: image stores hold gigabytes, and write files once.
    """
    digest = hashlib.sha256()
    size, count = _SPARE_BYTES, 1024
    for folder, names, files in os.walk(source):
        names.sort()
        for name in sorted([*files, *names]):
            path = Path(folder) / name
            status = path.lstat()
            digest.update(
                f"{path.relative_to(source)}\0{status.st_mode}\0{status.st_uid}\0{status.st_size}\0"
                f"{status.st_mtime_ns}\n".encode("utf-8", "surrogateescape")
            )
            # Blocks that the file takes, and an inode with room for long names and attributes.
            size += -(-status.st_size // _BLOCK) * _BLOCK + _BLOCK
            count += 1
    return digest.hexdigest()[:16], size + size // 16, count
