"""What is appended to an initial RAM disk, read back by the format's own rules."""

from __future__ import annotations

import io
import tarfile

from splitrail.lab import identity
from splitrail.lab.identity import File

FILES = {
    "etc/hostname": File("n1\n"),
    "home/user/.ssh": File(None, 0o700, (1000, 1000)),
    "home/user/.ssh/authorized_keys": File("key\n", 0o600, (1000, 1000)),
}


def unpacked(data: bytes) -> dict[str, bytes]:
    """The files of a newc cpio archive, up to its trailer."""
    found: dict[str, bytes] = {}
    at = 0
    while True:
        assert data[at : at + 6] == b"070701"
        fields = [int(data[at + 6 + 8 * n : at + 14 + 8 * n], 16) for n in range(13)]
        size, length = fields[6], fields[11]
        name = data[at + 110 : at + 110 + length - 1].decode()
        body = (at + 110 + length + 3) // 4 * 4
        if name == "TRAILER!!!":
            return found
        found[name] = data[body : body + size]
        at = (body + size + 3) // 4 * 4


def test_archive_keeps_modes_and_owners() -> None:
    with tarfile.open(fileobj=io.BytesIO(identity.archive(FILES))) as tar:
        folder, keys = (tar.getmember(f"home/user/.ssh{name}") for name in ("", "/authorized_keys"))
        assert (folder.isdir(), folder.mode, folder.uid) == (True, 0o700, 1000)
        assert (keys.isfile(), keys.mode, keys.uid, keys.gid) == (True, 0o600, 1000, 1000)
        content = tar.extractfile("etc/hostname")
        assert content
        assert content.read() == b"n1\n"


def test_the_key_follows_the_content() -> None:
    same, other = identity.archive(FILES), identity.archive({**FILES, "etc/hostname": File("n2\n")})
    assert identity.archive(FILES) == same
    found = unpacked(identity.appendix(same))
    assert found["splitrail-identity.tar"] == same
    assert found["splitrail-identity.key"] != unpacked(identity.appendix(other))["splitrail-identity.key"]


def test_the_second_archive_begins_where_the_kernel_looks() -> None:
    assert [len(identity.padded(b"x" * size)) for size in (0, 1, 4, 5)] == [0, 4, 4, 8]
