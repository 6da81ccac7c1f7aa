"""What tells one VM node from another, as an archive that its initial RAM disk lays out before init starts.

It is appended to the initial RAM disk as a second cpio archive, which the kernel unpacks over the first: no
second disk, so that snapshots hold nothing but the node's own, and no mount of a guest's disk on this host.
"""

from __future__ import annotations

import hashlib
import io
import tarfile
from collections.abc import Mapping
from dataclasses import dataclass

_ALIGN = 4
_HEADER = 110  # bytes of a newc header, before the name


@dataclass(frozen=True)
class File:
    """A file of a node; a folder when `data` is None."""

    data: str | None
    mode: int = 0o644
    owner: tuple[int, int] = (0, 0)


def archive(files: Mapping[str, File]) -> bytes:
    """`files`, by path without a leading slash, as a tar; the same for the same files."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=tarfile.USTAR_FORMAT) as tar:
        for name, file in files.items():
            entry = tarfile.TarInfo(name)
            entry.mode = file.mode
            entry.uid, entry.gid = file.owner
            data = (file.data or "").encode()
            entry.type = tarfile.DIRTYPE if file.data is None else tarfile.REGTYPE
            entry.size = len(data)
            tar.addfile(entry, io.BytesIO(data))
    return out.getvalue()


def appendix(tar: bytes) -> bytes:
    """What to append to an initial RAM disk so that it finds `tar` and its key."""
    key = hashlib.sha256(tar).hexdigest().encode() + b"\n"
    return _cpio({"splitrail-identity.tar": tar, "splitrail-identity.key": key})


def padded(initrd: bytes) -> bytes:
    """`initrd`, ended where the kernel looks for a next archive."""
    return initrd + b"\0" * (-len(initrd) % _ALIGN)


def _cpio(files: Mapping[str, bytes]) -> bytes:
    """A cpio archive in the one format that the kernel reads (newc), of files that root alone may read."""
    out = bytearray()
    for inode, (name, data) in enumerate([*files.items(), ("TRAILER!!!", b"")], start=1):
        mode = 0o100600 if name in files else 0
        size = len(name) + 1
        fields = (inode, mode, 0, 0, 1, 0, len(data), 0, 0, 0, 0, size, 0)
        out += b"070701" + "".join(f"{field:08x}" for field in fields).encode() + name.encode() + b"\0"
        out += b"\0" * (-(_HEADER + size) % _ALIGN)
        out += data + b"\0" * (-len(data) % _ALIGN)
    return bytes(out)
