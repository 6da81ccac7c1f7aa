"""The other nodes: which of them to ask for a chunk, and asking.

Who does what follows from the chunk's number alone, so nobody has to agree on anything. Nodes stand in a
ring, by name. Chunk c is taken from the source by its *origin*, the node c mod (number of origins), and given
to the others by its *distributor*, the node c mod (number of nodes), who asks the origin if that is another.
Every byte so leaves the source once, every node takes in the model once and gives out about as much (scatter
and all-gather), and the time does not grow with the number of nodes. A node that does not answer, or stands
still, is passed over.
"""

from __future__ import annotations

import hashlib
import http.client
import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from .manifest import BLOCK
from .server import DIGEST_HEADER

CONNECT_S = 5.0
# A peer that sends nothing for so long within a chunk is given up; it may be asked again.
SILENCE_S = 20.0
NOT_HERE = 404
# Of four attempts at a chunk this one goes to a node that may have it by chance.
ELSEWHERE = 3


class PeerError(Exception):
    """A peer did not give the chunk; the message names it and says why."""


@dataclass
class Peer:
    """What is known of another node. Times are of the monotonic clock, in seconds."""

    name: str
    address: str
    tried: float = 0.0
    failing_since: float | None = None
    progressed: float = field(default_factory=time.monotonic)
    moved: int = -1
    stands_s: float = 0.0

    def gave(self) -> None:
        """It gave a chunk."""
        self.failing_since, self.stands_s, self.progressed = None, 0.0, time.monotonic()

    def lacks(self, moved: int) -> None:
        """It answered that it lacks a chunk; moved: the bytes that it has taken in until now."""
        self.failing_since = None
        if moved != self.moved:
            self.moved, self.progressed = moved, time.monotonic()
        # Kept as of now: that nobody asked it for a while is not its fault.
        self.stands_s = time.monotonic() - self.progressed

    def failed(self) -> None:
        """It did not."""
        self.failing_since = self.failing_since or time.monotonic()

    def gone(self, gone_s: float) -> bool:
        """Whether it has not answered for so long."""
        return self.failing_since is not None and time.monotonic() - self.failing_since > gone_s


class Ring:
    """Who is asked for which chunk. origins: nodes that have the model, or may ask the source."""

    def __init__(
        self, me: str, peers: Sequence[Peer], origins: Sequence[str], gone_s: float, stuck_s: float
    ) -> None:
        self._me, self._gone_s, self._stuck_s = me, gone_s, stuck_s
        self.peers = {peer.name: peer for peer in peers}
        self._nodes = sorted([me, *self.peers])
        self._origins = sorted(origins)
        # Set while this node's own source does not answer, so that another takes over.
        self.source_fails = False

    def _able(self, name: str) -> bool:
        if name == self._me:
            return not self.source_fails
        peer = self.peers[name]
        return not (peer.stands_s > self._stuck_s or peer.gone(self._gone_s))

    def lane(self, index: int) -> int:
        """The distributor's place in the ring, counted from this node's: 0 is this node itself."""
        return (index - self._nodes.index(self._me)) % len(self._nodes)

    def origin(self, index: int) -> str:
        """The node that takes the chunk from the source: the first able one, beginning with its own."""
        at = index % len(self._origins)
        ordered = self._origins[at:] + self._origins[:at]
        return next((name for name in ordered if self._able(name)), ordered[0])

    def whom(self, index: int, attempt: int) -> Peer | None:
        """Whom to ask for a chunk the next time: its distributor, its origin, now and then somebody else.

        None where there is nobody else.
        """
        at = index % len(self._nodes)
        names = [name for name in self._nodes[at:] + self._nodes[:at] if name != self._me]
        ring = [self.peers[name] for name in names]
        # A peer that is gone is asked now and then all the same: it may be back.
        rested = [
            peer
            for peer in ring
            if not peer.gone(self._gone_s) or time.monotonic() - peer.tried > self._gone_s
        ]
        ring = rested or ring
        if not ring:
            return None
        first = [peer for peer in ring if peer.name in (self._nodes[at], self.origin(index))]
        if not first or attempt % 4 == ELSEWHERE:
            return ring[attempt // 4 % len(ring)]
        return first[attempt % len(first)]


class Asker:
    """Asks peers over connections that it keeps. One a thread."""

    def __init__(self, port: int, token: str, manifest: str) -> None:
        self._port, self._manifest = port, manifest
        self._headers = {"Authorization": f"Bearer {token}"}
        self._kept: dict[str, http.client.HTTPConnection] = {}

    def fetch(
        self, peer: Peer, index: int, length: int, *, wait: float, write: Callable[[memoryview], None]
    ) -> str | None:
        """Let the chunk be written as it comes; its SHA-256, or None when the peer does not have it yet.

        Raises PeerError, and OSError of ``write``.
        """
        peer.tried = time.monotonic()
        try:
            return self._fetch(peer, index, length, wait, write)
        except PeerError:
            peer.failed()
            self._drop(peer)
            raise

    def _fetch(
        self, peer: Peer, index: int, length: int, wait: float, write: Callable[[memoryview], None]
    ) -> str | None:
        try:
            link = self._kept.get(peer.name) or self._connect(peer)
            link.request("GET", f"/{self._manifest}/{index}?wait={wait:g}", headers=self._headers)
            answer = link.getresponse()
            if answer.status != http.client.OK:
                said = json.loads(answer.read())
                if answer.status != NOT_HERE:
                    raise PeerError(f"{peer.name}: {said.get('error', answer.status)}")
                peer.lacks(int(said["moved"]))
                return None
        except (OSError, http.client.HTTPException, ValueError, KeyError, TypeError) as error:
            raise PeerError(f"{peer.name} ({peer.address}): {error or type(error).__name__}") from error
        total, left, buffer = hashlib.sha256(), length, memoryview(bytearray(BLOCK))
        while left:
            try:
                got = answer.readinto(buffer[: min(BLOCK, left)])
            except (OSError, http.client.HTTPException) as error:
                raise PeerError(f"{peer.name}: broke off ({error or type(error).__name__})") from error
            if not got:
                raise PeerError(f"{peer.name}: broke off {left} bytes early")
            total.update(buffer[:got])
            write(buffer[:got])
            left -= got
        answer.read()
        peer.gave()
        wanted, digest = answer.headers.get(DIGEST_HEADER, ""), total.hexdigest()
        if digest != wanted:
            raise PeerError(f"{peer.name}: chunk {index} came altered")
        return digest

    def _connect(self, peer: Peer) -> http.client.HTTPConnection:
        link = http.client.HTTPConnection(peer.address, self._port, timeout=CONNECT_S)
        link.connect()
        link.sock.settimeout(SILENCE_S)
        self._kept[peer.name] = link
        return link

    def _drop(self, peer: Peer) -> None:
        if link := self._kept.pop(peer.name, None):
            link.close()
