"""Read OpenPGP public keys: who they are, whether they are revoked, and when they expire.

Standard library only: this file travels to nodes, which have gpgv and need not have gpg. Signatures are not
verified here. The fingerprint is a digest of the key itself and needs none; an expiry that somebody prolonged
is refused by APT, which does verify.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import re
from collections.abc import Iterator
from dataclasses import dataclass, field

PUBLIC_KEY, SIGNATURE, USER_ID = 6, 2, 13
# Signatures by which a key says something of itself: on its user ids, and directly.
SELF, REVOCATION = (0x10, 0x11, 0x12, 0x13, 0x1F), 0x20
# Others are read by no APT of the systems that are supported.
VERSION, SHORTEST = b"\x04", 6
CREATED, EXPIRES_AFTER, ISSUER, ISSUER_FINGERPRINT = 2, 9, 16, 33


class Unreadable(Exception):
    """The bytes are no public key, or not all of one; the message says why."""


@dataclass
class Key:
    """A primary key; times are seconds since the epoch, ``expires`` 0 for never."""

    fingerprint: str
    created: int
    expires: int = 0
    revoked: bool = False
    users: list[str] = field(default_factory=list)
    _said: int = -1


def keys(data: bytes) -> list[Key]:
    """The primary keys of a keyring, armoured or not. Raises Unreadable."""
    found: list[Key] = []
    for tag, body in _packets(dearmoured(data)):
        if tag == PUBLIC_KEY:
            if body[:1] != VERSION or len(body) < SHORTEST:
                raise Unreadable("a key of another version than 4, or not all of it")
            digest = hashlib.sha1(b"\x99" + len(body).to_bytes(2, "big") + body)  # noqa: S324  # as RFC 4880 defines it
            found.append(Key(digest.hexdigest().upper(), int.from_bytes(body[1:5], "big")))
        elif tag == USER_ID and found:
            found[-1].users.append(body.decode("utf-8", "replace"))
        elif tag == SIGNATURE and found:
            _hear(found[-1], body)
    if not found:
        raise Unreadable("no public key")
    return found


def dearmoured(data: bytes) -> bytes:
    """The packets themselves. Raises Unreadable for armour that is cut short or damaged."""
    if not data.lstrip().startswith(b"-----BEGIN"):
        return data
    text = data.decode("ascii", "replace").replace("\r", "")
    block = re.search(
        r"-----BEGIN PGP PUBLIC KEY BLOCK-----\n(.*?)-----END PGP PUBLIC KEY BLOCK-----", text, re.DOTALL
    )
    if not block:
        raise Unreadable("the armour has no end: the file is cut short")
    # Headers end with an empty line; a line that begins with = is the checksum.
    lines = block[1].partition("\n\n")[2] or block[1]
    packed, _, checksum = lines.partition("\n=")
    try:
        raw = base64.b64decode("".join(packed.split()), validate=True)
        crc = base64.b64decode(checksum.split()[0]) if checksum.split() else b""
    except (binascii.Error, ValueError) as error:
        raise Unreadable(f"damaged armour: {error}") from error
    if crc and int.from_bytes(crc, "big") != _crc24(raw):
        raise Unreadable("damaged armour: its checksum is another")
    return raw


def _crc24(data: bytes) -> int:
    crc = 0xB704CE
    for byte in data:
        crc ^= byte << 16
        for _ in range(8):
            crc = (crc << 1) ^ (0x1864CFB if crc & 0x800000 else 0)
    return crc & 0xFFFFFF


def _packets(data: bytes) -> Iterator[tuple[int, bytes]]:
    at = 0
    while at < len(data):
        head = data[at]
        if not head & 0x80:
            raise Unreadable("not an OpenPGP file")
        at += 1
        if head & 0x40:
            tag = head & 0x3F
            at, length = _length(data, at)
        else:
            tag, size = (head >> 2) & 0x0F, (1, 2, 4, 0)[head & 3]
            if not size:
                raise Unreadable("a packet without a length")
            length = int.from_bytes(data[at : at + size], "big")
            at += size
        if at + length > len(data):
            raise Unreadable("the file is cut short")
        yield tag, data[at : at + length]
        at += length


def _length(data: bytes, at: int) -> tuple[int, int]:
    """Where the content begins after a new-style length, and how long it is."""
    if at >= len(data):
        raise Unreadable("the file is cut short")
    first = data[at]
    if first < 192:  # noqa: PLR2004  # these bounds are the format's
        return at + 1, first
    if first < 224:  # noqa: PLR2004
        return at + 2, ((first - 192) << 8) + int.from_bytes(data[at + 1 : at + 2], "big") + 192
    if first < 255:  # noqa: PLR2004
        raise Unreadable("a packet in parts")
    return at + 5, int.from_bytes(data[at + 1 : at + 5], "big")


def _hear(key: Key, body: bytes) -> None:
    """Take over what a signature by the key itself says of its life."""
    if body[:1] != VERSION or len(body) < SHORTEST:
        return
    kind, size = body[1], int.from_bytes(body[4:6], "big")
    hashed = dict(_subpackets(body[6 : 6 + size]))
    rest = body[6 + size :]
    unhashed = dict(_subpackets(rest[2 : 2 + int.from_bytes(rest[:2], "big")]))
    issuer = hashed.get(ISSUER_FINGERPRINT, b"")[1:] or hashed.get(ISSUER) or unhashed.get(ISSUER, b"")
    if not issuer or not key.fingerprint.endswith(issuer.hex().upper()):
        return
    if kind == REVOCATION:
        key.revoked = True
    elif kind in SELF:
        said = int.from_bytes(hashed.get(CREATED, b""), "big")
        if said >= key._said:
            after = int.from_bytes(hashed.get(EXPIRES_AFTER, b""), "big")
            key._said, key.expires = said, key.created + after if after else 0


def _subpackets(data: bytes) -> Iterator[tuple[int, bytes]]:
    at = 0
    while at < len(data):
        at, length = _subpacket_length(data, at)
        if length < 1 or at + length > len(data):
            raise Unreadable("a damaged signature")
        yield data[at] & 0x7F, data[at + 1 : at + length]
        at += length


def _subpacket_length(data: bytes, at: int) -> tuple[int, int]:
    first = data[at]
    if first < 192:  # noqa: PLR2004
        return at + 1, first
    if first < 255:  # noqa: PLR2004
        return at + 2, ((first - 192) << 8) + int.from_bytes(data[at + 1 : at + 2], "big") + 192
    return at + 5, int.from_bytes(data[at + 1 : at + 5], "big")
